// SPDX-License-Identifier: Apache-2.0
#include "nn/parameters.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <functional>
#include <numeric>

#include "core/error.h"
#include "core/random.h"
#include "kernels/optimizer.h"

namespace conclave::nn {
namespace {

constexpr int64_t kAlignment = 16;  // elements: 64 bytes in fp32

// Every element is drawn by its place in the whole tensor. `piece` is what is held, row-major.
void fill_part(Tensor piece, const LogicalTensor& part, const Random& random, double std) {
  if (part.whole()) return kernels::fill_normal(piece, random, 0, std);
  const int64_t row = element_count(part.shape) / part.shape[0];
  if (part.slice.dimension == 0) return kernels::fill_normal(piece, random, part.slice.begin * row, std);
  const int64_t count = part.slice.count;
  for (int64_t i = 0; i < part.shape[0]; ++i) {
    Tensor held = piece.narrow(0, i * count, count);
    kernels::fill_normal(held, random, i * row + part.slice.begin, std);
  }
}

}  // namespace

Slice slice_of(int dimension, int64_t size, int rank, int ranks) {
  const int64_t begin = size * rank / ranks;
  return {dimension, begin, size * (rank + 1) / ranks - begin};
}

std::vector<int64_t> LogicalTensor::held() const {
  std::vector<int64_t> sizes = shape;
  if (!whole()) sizes.at(slice.dimension) = slice.count;
  return sizes;
}

const char* kind_name(ParameterKind kind) {
  switch (kind) {
    case ParameterKind::kWeight:
      return "weight";
    case ParameterKind::kNorm:
      return "norm";
    case ParameterKind::kBias:
      return "bias";
    case ParameterKind::kEmbedding:
      return "embedding";
    case ParameterKind::kRouter:
      return "router";
  }
  return "";
}

int64_t element_count(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

ParameterId Parameters::add(ParameterSpec spec) {
  Parameter parameter{std::move(spec)};
  parameter.count = element_count(parameter.shape);
  int64_t parts = 0;
  for (const auto& part : parameter.parts) parts += element_count(part.held());
  check(parts == parameter.count, "what is held of the parts of a parameter must fill it");
  int64_t& end = parameter.expert ? expert_size_ : dense_size_;
  parameter.offset = end;
  end += (parameter.count + kAlignment - 1) / kAlignment * kAlignment;
  parameters_.push_back(std::move(parameter));
  return static_cast<ParameterId>(parameters_.size()) - 1;
}

void Parameters::allocate(at::ScalarType dtype, uint64_t seed) {
  dense_ = at::zeros({dense_size_}, at::TensorOptions().dtype(dtype));
  expert_ = at::zeros({expert_size_}, at::TensorOptions().dtype(dtype));
  values_.clear();
  for (const auto& parameter : parameters_) {
    values_.push_back(view_of(flat(parameter.expert), parameter));
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = element_count(part.held());
      Tensor piece = flat(parameter.expert).narrow(0, begin, count);
      if (parameter.init_std > 0) {
        fill_part(piece, part, Random(seed, Purpose::kInit, part.name), parameter.init_std);
      } else {
        piece.fill_(parameter.init_value);
      }
      begin += count;
    }
  }
}

void Parameters::place(at::Device device, at::ScalarType compute) {
  for (Tensor* flat : {&dense_, &expert_}) *flat = flat->to(device);
  const bool copies = compute != dense_.scalar_type();
  if (copies) {
    dense_copy_ = at::empty_like(dense_, dense_.options().dtype(compute));
    expert_copy_ = at::empty_like(expert_, expert_.options().dtype(compute));
  }
  values_.clear();
  for (const auto& parameter : parameters_) {
    const bool copy = copies && parameter.kind != ParameterKind::kRouter;
    const Tensor& own = parameter.expert ? expert_copy_ : dense_copy_;
    values_.push_back(view_of(copy ? own : flat(parameter.expert), parameter));
  }
  refresh();
}

void Parameters::refresh() {
  if (!dense_copy_.defined() || !stale_) return;
  dense_copy_.copy_(dense_);
  expert_copy_.copy_(expert_);
  stale_ = false;
}

Tensor Parameters::stacked_value(std::span<const ParameterId> ids) const {
  const bool expert = parameters_[ids[0]].expert;
  const Tensor& copy = expert ? expert_copy_ : dense_copy_;
  return stacked_view(copy.defined() ? copy : flat(expert), *this, ids);
}

Tensor stacked_view(const Tensor& flat, const Parameters& parameters, std::span<const ParameterId> ids) {
  const Parameter& first = parameters[ids[0]];
  const int64_t apart = ids.size() > 1 ? parameters[ids[1]].offset - first.offset : first.count;
  std::vector<int64_t> sizes{std::ssize(ids)}, strides{apart};
  for (size_t i = 0; i < ids.size(); ++i) {
    const Parameter& p = parameters[ids[i]];
    check(p.shape == first.shape && p.offset == first.offset + static_cast<int64_t>(i) * apart,
          "stacked parameters lie evenly");
  }
  int64_t stride = first.count;
  for (const int64_t size : first.shape) {
    sizes.push_back(size);
    strides.push_back(stride /= size);
  }
  return flat.as_strided(sizes, strides, flat.storage_offset() + first.offset);
}

Tensor view_of(const Tensor& flat, const Parameter& parameter) {
  return flat.narrow(0, parameter.offset, parameter.count).view(parameter.shape);
}

Tensor Gradients::view(const Parameter& parameter, int source) const {
  if (!parameter.expert) return view_of(dense, parameter);
  return view_of(experts.size() == 1 ? experts[0] : experts.at(source), parameter);
}

}  // namespace conclave::nn
