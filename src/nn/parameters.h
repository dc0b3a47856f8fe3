// SPDX-License-Identifier: Apache-2.0
// Parameters in flat, contiguous buffers with named views: one buffer for what every data-parallel rank holds, one for
// the experts this rank owns. Reduction, clipping, AdamW and checkpoints walk ranges of these buffers, never tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace conclave::nn {

enum class ParameterKind { kWeight, kNorm, kBias, kEmbedding, kRouter };

// The word of `optim.no_decay` for a kind ("weight" cannot be listed there).
const char* kind_name(ParameterKind kind);

// Which part of one dimension a rank holds. The whole of it when count is negative.
struct Slice {
  int dimension = 0;
  int64_t begin = 0, count = -1;
};

// Part `rank` of `ranks` nearly equal, consecutive parts of `size`, which need not be a multiple.
Slice slice_of(int dimension, int64_t size, int rank, int ranks);

// A tensor as users, checkpoints and initialisation know it. Several may be fused into one parameter, one after
// another.
struct LogicalTensor {
  std::string name;            // "layers.3.moe.experts.17.gate.weight", experts by global id
  std::vector<int64_t> shape;  // of the whole tensor, row-major
  Slice slice = {};            // what this rank holds of it: tensor parallelism

  bool whole() const { return slice.count < 0; }
  std::vector<int64_t> held() const;  // shape of what is held
};

struct ParameterSpec {
  std::vector<LogicalTensor> parts;  // at least one
  std::vector<int64_t> shape;        // of the fused view here; its size is the sum of what is held of the parts
  ParameterKind kind = ParameterKind::kWeight;
  bool expert = false;  // held by the owners of the expert only
  // Every tensor-parallel rank holds all of it but sees part of its gradient: a share of the tokens or of the heads.
  bool partial = false;
  bool frozen = false;    // stays as it was drawn: neither trained nor part of the gradient norm
  double lr_scale = 1;    // multiplies the learning rate; weight decay stays as it is
  double init_std = 0;    // normal with this deviation; 0 = constant
  double init_value = 0;  // the constant
};

struct Parameter : ParameterSpec {
  int64_t offset = 0;  // in its flat buffer, elements; a multiple of 64 bytes
  int64_t count = 0;
};

using ParameterId = int;

class Parameters {
 public:
  ParameterId add(ParameterSpec spec);
  // Makes the buffers and fills them: every element is a function of (seed, logical name, element), so every layout
  // starts from the same weights.
  void allocate(at::ScalarType dtype, uint64_t seed);

  // Moves the buffers to a device. With another type than theirs, all weights but the routers' get a copy of that type
  // for value(), and the buffers stay the masters, which updates, checkpoints and gradients speak of.
  void place(at::Device device, at::ScalarType compute);
  // Makes the copies from the masters again, unless they are: before stages run. Whoever is given the masters to write
  // may have changed them.
  void refresh();
  // The copy of a buffer, for who changes the masters and it together and then says so; undefined where there is none.
  const Tensor& copy_of(bool expert) const { return expert ? expert_copy_ : dense_copy_; }
  void copies_are_fresh() { stale_ = false; }

  const Parameter& operator[](ParameterId id) const { return parameters_[id]; }
  const std::vector<Parameter>& all() const { return parameters_; }
  // What stages compute with.
  Tensor value(ParameterId id) const { return values_[id]; }
  // The values of equally large parameters that follow each other, as one tensor with a dimension more: a view.
  Tensor stacked_value(std::span<const ParameterId> ids) const;
  // To write the masters: copies count as stale from here on.
  Tensor& flat(bool expert) {
    stale_ = true;
    return expert ? expert_ : dense_;
  }
  const Tensor& flat(bool expert) const { return expert ? expert_ : dense_; }
  int64_t flat_size(bool expert) const { return expert ? expert_size_ : dense_size_; }

 private:
  std::vector<Parameter> parameters_;
  std::vector<Tensor> values_;
  Tensor dense_, expert_;
  Tensor dense_copy_, expert_copy_;  // in the type of the computation; undefined where that is the masters'
  bool stale_ = true;                // the copies may differ from the masters
  int64_t dense_size_ = 0, expert_size_ = 0;
};

// Where the parameter gradients of one micro-batch go: flat buffers laid out like the parameters', zero at the start.
struct Gradients {
  Tensor dense;
  // One buffer for each rank of the ep group whose rows may arrive here: partial sums stay apart until the canonical
  // tree adds them. With one buffer, all sources share it.
  std::vector<Tensor> experts;
  bool fresh = true;  // nothing written yet, so a product may overwrite instead of add

  Tensor view(const Parameter& parameter, int source = 0) const;
};

// Equally large parameters that lie evenly in `flat`, which is laid out like their buffer: [how many, their shape].
Tensor stacked_view(const Tensor& flat, const Parameters& parameters, std::span<const ParameterId> ids);

// The view of `parameter` in a flat buffer laid out like the parameters'.
Tensor view_of(const Tensor& flat, const Parameter& parameter);
int64_t element_count(const std::vector<int64_t>& shape);

}  // namespace conclave::nn
