// SPDX-License-Identifier: Apache-2.0
#include "app/measured_layer.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <malloc.h>

#include <algorithm>
#include <set>

#include "app/bench_step.h"
#include "core/error.h"
#include "model/accounting.h"
#include "train/step.h"

namespace conclave::app {
namespace {

constexpr const char* kPrefix = "layers.0.moe.";

// A model of the first MoE layer alone.
train::RunConfig one_layer(train::RunConfig config) {
  const auto layers = model::model_shape(config.model, config.moe).layers;
  if (std::none_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.moe; }))
    throw ConfigError("moe: this model has no MoE layer to measure (moe.enabled, moe.layers, model.num_layers)");
  if (const auto* each = std::get_if<std::vector<int64_t>>(&config.moe.num_experts)) {
    const int64_t first = each->at(0);
    config.moe.num_experts = first;
  }
  if (config.moe.expert_hidden_size && config.moe.expert_hidden_size->each())
    throw ConfigError(
        "moe.expert_hidden_size: a layer is measured beside products of one width; give one number, such as the mean "
        "{}",
        int64_t{*config.moe.expert_hidden_size});
  config.model.num_layers = 1;
  config.moe.layers = std::vector<int64_t>{1};
  return config;
}

Batch one_batch(const train::RunConfig& config) { return made_up_batches(config, {}).at(0); }

nn::Gradients gradients_of(const model::Transformer& model) {
  return {at::zeros_like(model.parameters().flat(false)), {at::zeros_like(model.parameters().flat(true))}, true};
}

at::TensorOptions rows_of(const model::Transformer& model) {
  const model::DevicePath* path = model.device_path();
  return path == nullptr ? at::TensorOptions(at::kFloat) : at::TensorOptions(path->device).dtype(path->compute);
}

}  // namespace

MeasuredLayer::MeasuredLayer(const train::RunConfig& config)
    : model_(train::transformer_config(one_layer(config))),
      batch_(one_batch(config)),
      gradients_(gradients_of(model_)),
      frame_(model_.frame(batch_, &gradients_)),
      x_TD_(at::randn({batch_.tokens_count(), model_.shape().hidden}, rows_of(model_))),
      dy_TD_(at::randn(x_TD_.sizes(), x_TD_.options())) {
  std::set<nn::Slot> read;
  const auto& stages = model_.stages();
  for (size_t s = 0; s < stages.size(); ++s) {
    if (stages[s]->name().rfind(kPrefix, 0) != 0) continue;
    stages_.push_back(s);
    for (const nn::Slot slot : stages[s]->inputs()) read.insert(slot);
  }
  check(!stages_.empty(), "the stages of an MoE layer have its name");
  input_ = stages[stages_[0]]->inputs().at(0);
  for (const size_t s : stages_) {
    const auto outputs = stages[s]->outputs();
    std::copy_if(outputs.begin(), outputs.end(), std::back_inserter(outputs_),
                 [&](nn::Slot slot) { return read.count(slot) == 0; });
  }
  for (const auto& memory : model_.stage_memory())
    std::copy_if(memory.dropped.begin(), memory.dropped.end(), std::back_inserter(again_),
                 [&](size_t s) { return std::find(stages_.begin(), stages_.end(), s) != stages_.end(); });
  model_.refresh();
}

void MeasuredLayer::clear() {
  for (const size_t s : stages_) {
    frame_.forget(static_cast<int>(s));
    for (const nn::Slot slot : model_.stages()[s]->outputs()) {
      frame_.value(slot) = frame_.grad(slot) = Tensor();
      frame_.object(slot).reset();
    }
  }
  frame_.value(input_) = frame_.grad(input_) = Tensor();
}

void MeasuredLayer::forward() {
  frame_.value(input_) = x_TD_;
  for (const size_t s : stages_) {
    model_.stages()[s]->forward(frame_);
    for (const nn::Slot slot : model_.stage_memory()[s].unread) frame_.value(slot) = Tensor();
  }
  results_.clear();
  std::copy_if(outputs_.begin(), outputs_.end(), std::back_inserter(results_),
               [&](nn::Slot slot) { return frame_.value(slot).defined(); });
  for (const size_t s : again_) {
    frame_.forget(static_cast<int>(s));
    for (const nn::Slot slot : model_.stages()[s]->outputs()) frame_.value(slot) = Tensor();
  }
}

void MeasuredLayer::backward() {
  for (const nn::Slot slot : results_) frame_.grad(slot) = dy_TD_;
  for (const size_t s : again_) model_.stages()[s]->forward_again(frame_);
  for (auto s = stages_.rbegin(); s != stages_.rend(); ++s) {
    nn::Stage& stage = *model_.stages()[*s];
    stage.backward_input(frame_);
    stage.backward_weight(frame_);
    for (const nn::Slot slot : stage.outputs()) frame_.grad(slot) = frame_.value(slot) = Tensor();
  }
  frame_.grad(input_) = Tensor();
  gradients_.fresh = false;
}

int64_t MeasuredLayer::held_bytes() {
  const auto device = x_TD_.device();
  clear();
  const int64_t before = bytes_in_use(device);
  const Tensor kept = x_TD_;
  x_TD_ = x_TD_.clone();  // the layer's own input is counted
  forward();
  for (const nn::Slot slot : outputs_) frame_.value(slot) = Tensor();
  model_.reads().wait_for(device);
  const int64_t held = bytes_in_use(device) - before;
  x_TD_ = kept;
  clear();
  return held;
}

double MeasuredLayer::forward_flops() const {
  const auto flops = model::count_flops(model_.shape(), model::Counter::kExact, batch_.length);
  return static_cast<double>(flops.router + flops.shared + flops.experts) * static_cast<double>(tokens());
}

std::vector<int64_t> MeasuredLayer::expert_rows() {
  if (model_.device_path() == nullptr) return model_.decision(frame_, 0).statistics.selected_E;
  const Tensor rows_E = model_.reads().read(routed().selected_E);
  const auto rows = elements<int32_t>(rows_E);
  return {rows.begin(), rows.end()};
}

int64_t bytes_in_use(at::Device device) {
  if (device.is_cpu()) {
    const auto info = mallinfo2();
    return static_cast<int64_t>(info.uordblks + info.hblkhd);
  }
  const auto index =
      device.has_index() ? device.index() : c10::impl::VirtualGuardImpl(device.type()).getDevice().index();
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(index);
  return stats.requested_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].current;
}

}  // namespace conclave::app
