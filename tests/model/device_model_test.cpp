// SPDX-License-Identifier: Apache-2.0
// A whole model on the device path in fp64, on tensors of the CPU, against the host path stage by stage: what every
// slot holds and its gradient, and the gradient of every parameter.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <map>

#include "support/tiny_models.h"

namespace conclave::model {
namespace {

constexpr double kTolerance = 1e-11;

struct Ran {
  std::map<std::string, Tensor> values, gradients;  // by slot
  std::map<std::string, Tensor> weights;            // gradients by parameter
  double loss = 0;
  int64_t reads = 0;
};

// Forward and backward without freeing anything.
Ran run(TransformerConfig config, const Batch& batch, bool on_device) {
  config.dtype = at::kDouble;
  if (on_device) config.device = DevicePath{.device = at::kCPU, .compute = at::kDouble};
  Transformer model(config);
  nn::Parameters& parameters = model.parameters();
  nn::Gradients gradients{at::zeros_like(parameters.flat(false)), {at::zeros_like(parameters.flat(true))}};
  nn::Frame frame = model.frame(batch, &gradients);
  Ran ran;
  for (const auto& stage : model.stages()) {
    stage->forward(frame);
    for (const nn::Slot slot : stage->outputs())
      if (frame.value(slot).defined()) ran.values[model.slots()[slot]] = frame.value(slot).clone();
  }
  for (size_t s = model.stages().size(); s-- > 0;) {
    const auto& stage = model.stages()[s];
    for (const nn::Slot slot : stage->outputs())
      if (frame.grad(slot).defined()) ran.gradients[model.slots()[slot]] = frame.grad(slot).clone();
    stage->backward_input(frame);
    stage->backward_weight(frame);
  }
  for (const auto& parameter : parameters.all())
    ran.weights[parameter.parts[0].name] = gradients.view(parameter).clone();
  ran.loss = on_device ? frame.device_loss_sum.item<double>() : frame.loss_sum;
  ran.reads = model.reads().count();
  return ran;
}

// Those that both have: the layer's inner slots differ. Returns how many.
int64_t compare(const std::map<std::string, Tensor>& own, const std::map<std::string, Tensor>& expected) {
  int64_t compared = 0;
  for (const auto& [name, tensor] : expected) {
    const auto found = own.find(name);
    if (found == own.end() || found->second.sizes() != tensor.sizes()) continue;
    const double scale = std::max(1e-6, tensor.abs().max().item<double>());
    EXPECT_LE((found->second - tensor).abs().max().item<double>(), kTolerance * scale) << name;
    ++compared;
  }
  return compared;
}

TransformerConfig full_config() {
  TransformerConfig config = testing::tiny_config();
  config.model.qk_norm = QkNorm::kHead;
  config.model.qkv_bias = true;
  config.moe.num_shared_experts = 1;
  config.moe.shared_hidden_size = 12;
  config.moe.shared_gate = true;
  config.moe.balance.losses = {{.type = moe::LossType::kSwitch,
                                .coef = 0.1,
                                .convention = moe::Convention::kHuggingface,
                                .scope = moe::Scope::kModel},
                               {.type = moe::LossType::kSwitch, .coef = 0.1, .level = moe::Level::kSequence},
                               {.type = moe::LossType::kZ, .coef = 0.01}};
  return config;
}

TEST(DeviceModel, HoldsWhatTheHostHoldsInEverySlot) {
  Batch batch = testing::random_batch(3, 9, 23, 4);
  for (const int64_t t : {25, 26}) batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;
  batch.loss_mask[5] = 0;
  for (int64_t t = 4; t < 9; ++t) batch.segment_ids[t] = 1;
  for (const bool document_mask : {false, true}) {
    SCOPED_TRACE(document_mask);
    TransformerConfig config = full_config();
    config.document_mask = document_mask;
    const Ran host = run(config, batch, false), device = run(config, batch, true);
    EXPECT_NEAR(device.loss / host.loss, 1.0, kTolerance);
    // Embedding, final norm; of each layer two norms and residuals, attention, shared expert and routed output.
    EXPECT_EQ(compare(device.values, host.values), 2 + 2 * 7);
    EXPECT_EQ(compare(device.gradients, host.gradients), 2 + 2 * 7);
    ASSERT_EQ(device.weights.size(), host.weights.size());
    EXPECT_EQ(compare(device.weights, host.weights), std::ssize(host.weights));
    EXPECT_EQ(device.reads, 0);
  }
}

}  // namespace
}  // namespace conclave::model
