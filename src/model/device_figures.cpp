// SPDX-License-Identifier: Apache-2.0
#include "model/device_figures.h"

#include <ATen/ops/cat.h>

namespace conclave::model {

void DeviceFigures::add(nn::Frame& frame) {
  const nn::DeviceBatch& batch = frame.device()->batch;
  const bool taught = frame.device_teacher_loss_sum.defined();
  micro_batches_.push_back({batch.tokens_B, batch.targets_B, {}, taught});
  waiting_.push_back(frame.device_loss_sum.view({1}));
  if (taught) waiting_.push_back(frame.device_teacher_loss_sum.view({1}));
  for (int l = 0; l < std::ssize(model_.moe_layers()); ++l)
    waiting_.push_back(moe::packed_statistics(model_.device_decision(frame, l).routed));
}

std::vector<double> DeviceFigures::read(const std::vector<Tensor>& more) {
  std::vector<Tensor> all = std::move(waiting_);
  waiting_.clear();
  all.insert(all.end(), more.begin(), more.end());
  if (all.empty()) return {};
  const Tensor host = model_.reads().read(at::cat(all));
  std::span<const double> numbers = elements<double>(host);
  for (MicroBatch& micro_batch : micro_batches_) unpack(numbers, micro_batch);
  return {numbers.begin(), numbers.end()};
}

void DeviceFigures::unpack(std::span<const double>& numbers, MicroBatch& micro_batch) {
  const auto take = [&](int64_t count) {
    const auto part = numbers.first(count);
    numbers = numbers.subspan(count);
    return part;
  };
  losses_.push_back(take(1)[0]);
  if (micro_batch.taught) teacher_losses_.push_back(take(1)[0]);
  const auto B = std::ssize(micro_batch.tokens_B);
  for (const int l : model_.moe_layers()) {
    const auto& layer = model_.shape().layers[l];
    const moe::RouteShape shape{.experts = layer.num_experts, .top_k = layer.top_k};
    micro_batch.layers.emplace_back().statistics = moe::unpacked_statistics(
        take((3 * B + 1) * layer.num_experts + 2), micro_batch.tokens_B, micro_batch.targets_B, shape);
  }
}

void DeviceFigures::add_to(RoutingTotals& totals) const {
  const Batch none;  // values of losses are made from statistics
  for (const MicroBatch& micro_batch : micro_batches_) {
    std::vector<const moe::Decision*> layers;
    for (const auto& decision : micro_batch.layers) layers.push_back(&decision);
    totals.add(model_, {layers, model_.state(), none});
  }
}

}  // namespace conclave::model
