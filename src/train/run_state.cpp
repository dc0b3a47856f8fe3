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

// Dense state is equal on all dp ranks, an expert's on all edp ranks: the first of each writes what all hold.
bool writes(const parallel::Mesh& mesh, bool expert) { return (expert ? mesh.edp() : mesh.dp()).rank() == 0; }
bool writes_whole(const parallel::Mesh& mesh, bool expert) { return (expert ? mesh.etp() : mesh.tp()).rank() == 0; }

}  // namespace

StateDict weight_state(model::Transformer& model, const parallel::Mesh& mesh) {
  StateDict state;
  for (const bool expert : {false, true}) {
    append_flat(
        state, model.parameters(),
        {model.parameters().flat(expert), 0, expert, kParamRole, writes(mesh, expert), writes_whole(mesh, expert)});
  }
  return state;
}

StateDict balance_state(model::Transformer& model, const parallel::Mesh& mesh,
                        std::vector<std::vector<int64_t>>& counts) {
  const auto& losses = model.balancer().losses();
  const bool global =
      std::any_of(losses.begin(), losses.end(), [](const auto& l) { return l.level == moe::Level::kGlobal; });
  StateDict state;
  counts.clear();
  for (auto& layer : model.balance()) counts.push_back(layer.last_counts_E);
  for (size_t l = 0; l < model.balance().size(); ++l) {
    const int number = model.moe_layers()[l];
    const int64_t E = model.shape().layers[number].num_experts;
    const auto entry = [&](const char* what, comm::DType dtype, std::span<std::byte> data) {
      state.push_back({.name = fmt::format("layers.{}.moe.router.{}", number, what),
                       .role = kBufferRole,
                       .dtype = dtype,
                       .global_shape = {E},
                       .offset = {0},
                       .shape = {E},
                       .data = data,
                       .writes = mesh.dp().rank() == 0 && mesh.tp().rank() == 0});
    };
    const Tensor bias = model.balance()[l].bias_E;
    if (bias.defined()) entry("bias", comm::DType::kFloat32, bytes_of(bias.data_ptr<float>(), E));
    if (!global) continue;
    counts[l].resize(E, 0);
    entry("last_counts", comm::DType::kInt64, bytes_of(counts[l].data(), E));
  }
  return state;
}

StateDict full_state(model::Transformer& model, TrainStep& step, const parallel::Mesh& mesh,
                     std::vector<std::vector<int64_t>>& counts) {
  StateDict state = weight_state(model, mesh);
  for (const bool expert : {false, true}) {
    auto& optimizer = step.optimizer(expert);
    const parallel::Shards& owned = step.owned(expert);
    const bool mine = owned.group().size() > 1 || writes(mesh, expert);
    const bool whole = writes_whole(mesh, expert);
    const int64_t begin = owned.begin();
    append_flat(state, model.parameters(), {optimizer.first_moment(), begin, expert, kFirstMomentRole, mine, whole});
    append_flat(state, model.parameters(), {optimizer.second_moment(), begin, expert, kSecondMomentRole, mine, whole});
  }
  for (auto& entry : balance_state(model, mesh, counts)) state.push_back(std::move(entry));
  return state;
}

StateDict gradient_state(const TrainStep& step, const model::Transformer& model, const parallel::Mesh& mesh) {
  StateDict state;
  for (const bool expert : {false, true}) {
    append_flat(state, model.parameters(),
                {step.gradient_sum(expert), step.owned(expert).begin(), expert, kGradientRole, writes(mesh, expert),
                 writes_whole(mesh, expert)});
  }
  return state;
}

void restore_balance(model::Transformer& model, const std::vector<std::vector<int64_t>>& counts) {
  for (size_t l = 0; l < counts.size(); ++l) model.balance()[l].last_counts_E = counts[l];
}

}  // namespace conclave::train
