// SPDX-License-Identifier: Apache-2.0
#include "train/run_state.h"

#include <algorithm>

#include "checkpoint/box.h"

namespace conclave::train {
namespace {

using parallel::StateDict;
using parallel::StateEntry;

template <typename T>
std::span<std::byte> bytes_of(T* data, int64_t count) {
  return {reinterpret_cast<std::byte*>(data), static_cast<size_t>(count) * sizeof(T)};
}

// What this rank holds of a flat buffer laid out like the parameters'.
struct Flat {
  Tensor data;  // the elements from `begin` on
  int64_t begin;
  bool expert;
  const char* role;
  bool writes;        // of the ranks with the same parts of tensors, this one
  bool writes_whole;  // of the ranks that hold other parts, this one writes what all of them hold whole
};

// `box` of what is held, in coordinates of the whole tensor.
checkpoint::Box in_whole(checkpoint::Box box, const nn::LogicalTensor& tensor) {
  if (!tensor.whole()) box.offset[tensor.slice.dimension] += tensor.slice.begin;
  return box;
}

// One entry for each box: a logical tensor that lies whole in the range is one, a cut one a few.
void append_flat(StateDict& state, const nn::Parameters& parameters, const Flat& flat) {
  float* data = flat.data.data_ptr<float>();
  const int64_t end = flat.begin + flat.data.numel();
  for (const auto& parameter : parameters.all()) {
    if (parameter.expert != flat.expert) continue;
    int64_t start = parameter.offset;
    for (const auto& part : parameter.parts) {
      const auto held = part.held();
      const int64_t count = nn::element_count(held);
      const int64_t first = std::clamp<int64_t>(flat.begin - start, 0, count);
      int64_t at = start + first - flat.begin;
      for (const auto& own : checkpoint::boxes_of_range(held, first, std::clamp<int64_t>(end - start, first, count))) {
        auto box = in_whole(own, part);
        const int64_t elements = nn::element_count(box.shape);
        state.push_back({.name = part.name,
                         .role = flat.role,
                         .dtype = comm::DType::kFloat32,
                         .global_shape = part.shape,
                         .offset = std::move(box.offset),
                         .shape = std::move(box.shape),
                         .data = bytes_of(data + at, elements),
                         .writes = flat.writes && (!part.whole() || flat.writes_whole)});
        at += elements;
      }
      start += count;
    }
  }
}

// What this rank owns of a flat buffer, range after range in `flat`.
void append_owned(StateDict& state, const nn::Parameters& parameters, const parallel::Shards& owned, Flat flat) {
  const Tensor all = flat.data;
  for (const auto& range : owned.own()) {
    flat.data = all.narrow(0, range.at, range.count);
    flat.begin = range.begin;
    append_flat(state, parameters, flat);
  }
}

Tensor on_host(const Tensor& tensor, HostCopies* copies) {
  check(copies != nullptr || tensor.is_cpu(), "state on a device is reached through copies");
  return copies != nullptr ? copies->of(tensor) : tensor;
}

// Dense state is equal on all dp ranks, an expert's on all edp ranks: the first of each writes what all hold.
bool writes(const parallel::Mesh& mesh, bool expert) { return (expert ? mesh.edp() : mesh.dp()).rank() == 0; }
bool writes_whole(const parallel::Mesh& mesh, bool expert) { return (expert ? mesh.etp() : mesh.tp()).rank() == 0; }

}  // namespace

// A description holds pointers, so it can be made before the numbers have arrived.
namespace {

StateDict start_weight_state(model::Transformer& model, const parallel::Mesh& mesh, HostCopies* copies) {
  StateDict state;
  for (const bool expert : {false, true}) {
    append_flat(state, model.parameters(),
                {on_host(model.parameters().flat(expert), copies), 0, expert, kParamRole, writes(mesh, expert),
                 writes_whole(mesh, expert)});
  }
  return state;
}

}  // namespace

StateDict weight_state(model::Transformer& model, const parallel::Mesh& mesh, HostCopies* copies) {
  StateDict state = start_weight_state(model, mesh, copies);
  if (copies != nullptr) copies->arrive();
  return state;
}

StateDict method_state(model::Transformer& model, const parallel::Mesh& mesh) {
  StateDict state;
  const auto append = [&](const std::string& prefix, const moe::MethodState& methods) {
    for (const auto& [name, value] : methods.entries()) {
      const bool counts = value.scalar_type() == at::kLong;
      const auto shape = value.sizes().vec();
      state.push_back({.name = prefix + name,
                       .role = kBufferRole,
                       .dtype = counts ? comm::DType::kInt64 : comm::DType::kFloat32,
                       .global_shape = shape,
                       .offset = std::vector<int64_t>(shape.size(), 0),
                       .shape = shape,
                       .data = counts ? bytes_of(value.data_ptr<int64_t>(), value.numel())
                                      : bytes_of(value.data_ptr<float>(), value.numel()),
                       .writes = mesh.dp().rank() == 0 && mesh.tp().rank() == 0});
    }
  };
  for (size_t l = 0; l < model.state().layers.size(); ++l)
    append(fmt::format("layers.{}.moe.router.", model.moe_layers()[l]), model.state().layers[l]);
  append("moe.", model.state().shared);
  return state;
}

StateDict full_state(model::Transformer& model, TrainStep& step, const parallel::Mesh& mesh, HostCopies* copies) {
  step.wait_for_weights();
  StateDict state = start_weight_state(model, mesh, copies);
  for (const bool expert : {false, true}) {
    auto& optimizer = step.optimizer(expert);
    const parallel::Shards& owned = step.owned(expert);
    const bool mine = owned.group().size() > 1 || writes(mesh, expert);
    const bool whole = writes_whole(mesh, expert);
    append_owned(state, model.parameters(), owned,
                 {on_host(optimizer.first_moment(), copies), 0, expert, kFirstMomentRole, mine, whole});
    append_owned(state, model.parameters(), owned,
                 {on_host(optimizer.second_moment(), copies), 0, expert, kSecondMomentRole, mine, whole});
  }
  for (auto& entry : method_state(model, mesh)) state.push_back(std::move(entry));
  if (copies != nullptr) copies->arrive();
  return state;
}

StateDict gradient_state(const TrainStep& step, const model::Transformer& model, const parallel::Mesh& mesh) {
  StateDict state;
  for (const bool expert : {false, true}) {
    append_owned(state, model.parameters(), step.owned(expert),
                 {on_host(step.gradient_sum(expert), nullptr), 0, expert, kGradientRole, writes(mesh, expert),
                  writes_whole(mesh, expert)});
  }
  return state;
}

}  // namespace conclave::train
