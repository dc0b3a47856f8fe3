// SPDX-License-Identifier: Apache-2.0
#include "model/transformer.h"

#include <ATen/TensorOperators.h>

#include <algorithm>

#include "model/transformer_builder.h"
#include "model/truncated_normal.h"
#include "nn/linear.h"

namespace conclave::model {

Transformer::Transformer(const TransformerConfig& config, const parallel::Mesh& mesh)
    : shape_(model_shape(config.model, config.moe)),
      mesh_(mesh),
      balancer_(config.moe.balance),
      relative_widths_(moe::relative_widths(config.moe)) {
  moe::DispatchNeeds needs{.bitwise = config.bitwise_dispatch, .payload = config.moe.dispatch.payload};
  std::vector<int64_t> experts;  // of each MoE layer
  for (size_t l = 0; l < shape_.layers.size(); ++l) {
    if (!shape_.layers[l].moe) continue;
    // A row that stands for several tokens has one expert.
    if (!shape_.layers[l].compressed)
      needs.top_k = std::max(needs.top_k, config.moe.top_k.most() * config.moe.granularity);
    moe_layers_.push_back(static_cast<int>(l));
    experts.push_back(shape_.layers[l].num_experts);
  }
  balancer_.declare(experts, state_);
  device_ = config.device;
  // Stages of the device path exchange rows themselves.
  if (!device_) make_dispatcher(config, needs);
  if (device_) device_state_ = std::make_unique<moe::DeviceState>(state_, device_->device);
  TransformerBuilder builder(*this, config);
  builder.build();
  // Whoever evaluates reads the last hidden states and the decisions of the routers when forward has run.
  auto kept = decisions_;
  kept.push_back(hidden_);
  stage_memory_ = plan_memory(stages_, config.memory.recompute, kept);
  parameters_.allocate(config.dtype, config.seed);
  truncate(parameters_, builder.truncated(), config.seed);
  if (device_) parameters_.place(device_->device, device_->compute);
  refresh();
}

void Transformer::refresh() {
  if (!device_) return;
  parameters_.refresh();
  device_state_->refresh();
}

void Transformer::make_dispatcher(const TransformerConfig& config, moe::DispatchNeeds needs) {
  moe::DispatchConfig dispatch = config.moe.dispatch;
  const auto hosts = mesh_.etp().hosts();
  needs.parts_over_hosts = std::count(hosts.begin(), hosts.end(), hosts[0]) != std::ssize(hosts);
  // A dense model exchanges nothing.
  auto [type, reason] = choose_dispatcher(moe_layers_.empty() ? moe::DispatchType::kAllToAll : dispatch.type, needs,
                                          mesh_.ep(), moe::host_memory(mesh_.world()));
  dispatch.type = type;
  if (!moe_layers_.empty()) dispatch_reason_ = std::move(reason);
  dispatcher_ =
      moe::Dispatcher::over_expert_parts(config.make_dispatcher(dispatch, mesh_.ep()), mesh_.etp(), dispatch.payload);
}

const moe::Decision& Transformer::decision(nn::Frame& frame, int moe_layer) const {
  return frame.object_as<moe::Decision>(decisions_[moe_layer]);
}

const moe::DeviceDecision& Transformer::device_decision(nn::Frame& frame, int moe_layer) const {
  return frame.object_as<moe::DeviceDecision>(decisions_[moe_layer]);
}

const moe::OutputSums* Transformer::outputs(nn::Frame& frame, int moe_layer) const {
  const auto& slot = outputs_[moe_layer];
  return slot && frame.training() ? &frame.object_as<moe::OutputSums>(*slot) : nullptr;
}

std::optional<int64_t> Transformer::rows_sent(nn::Frame& frame, int moe_layer) const {
  const auto& slot = bucket_decisions_[moe_layer];
  if (!slot || !frame.training()) return std::nullopt;
  return frame.object_as<moe::Decision>(*slot).routing.pairs();
}

moe::LossView Transformer::loss_view(nn::Frame& frame, std::vector<const moe::Decision*>& storage) const {
  storage.clear();
  for (size_t l = 0; l < decisions_.size(); ++l) storage.push_back(&decision(frame, static_cast<int>(l)));
  return {storage, state_, frame.batch(), relative_widths_};
}

nn::Frame Transformer::frame(const Batch& batch, nn::Gradients* gradients, int64_t step) const {
  nn::Frame frame(batch, slots_.count(), static_cast<int>(stages_.size()), gradients);
  frame.set_step(step);
  frame.set_link(mesh_.ep());
  if (device_)
    frame.set_device({nn::copy_batch(batch, device_->device, shape_.vocab, shape_.max_seq_len), reads_.get()});
  return frame;
}

Tensor Transformer::hidden(nn::Frame& frame) const {
  check(mesh_.tp().size() == 1, "hidden states are asked of a model that no ranks share");
  return frame.value(hidden_);
}

Tensor Transformer::logits(nn::Frame& frame, int64_t token) const {
  const Tensor logits = nn::linear_forward(hidden(frame).narrow(0, token, 1), parameters_.value(head_)).view({-1});
  return logit_scale_ == 1 ? logits : logits * logit_scale_;
}

}  // namespace conclave::model
