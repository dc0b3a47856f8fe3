// SPDX-License-Identifier: Apache-2.0
// The MoE layer of the device path, run on tensors of the CPU, against the host's: output and every gradient; and that
// the host never looks at a number of it.
#include "support/device_layer.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "support/moe_methods.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::DeviceLayer;
using conclave::testing::expect_near;
using conclave::testing::LayerSize;
using conclave::testing::MoeLayer;
using kernels::random_tensor;

Batch padded_batch(int64_t sequences, int64_t length, int64_t padding) {
  Batch batch = conclave::testing::random_batch(sequences, length, 23, 1);
  for (int64_t t = batch.tokens_count() - padding; t < batch.tokens_count(); ++t)
    batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;
  if (batch.tokens_count() > 5) batch.loss_mask[3] = 0;
  return batch;
}

struct Case {
  std::string name;
  MoeConfig config;
  LayerSize size;
  int64_t sequences = 3, length = 7, padding = 4;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& methods : {conclave::testing::all_methods(), conclave::testing::router_methods()})
    for (const auto& method : methods) {
      const MoeConfig config = method.config();
      const auto& losses = config.balance.losses;
      const bool known = std::all_of(losses.begin(), losses.end(), [](const auto& loss) {
        return loss.type == LossType::kSwitch || loss.type == LossType::kZ;
      });
      if (known && config.router.type == "topk" && !config.capacity.factor && config.router.jitter == 0 &&
          config.router.second == "always")
        all.push_back({method.name, config, {method.experts, method.top_k}});
    }
  const auto with = [](std::vector<BalanceLoss> losses) {
    MoeConfig config;
    config.balance.losses = std::move(losses);
    return config;
  };
  using enum Convention;
  for (const auto convention : {kMegatron, kSwitch, kGshard, kDeepspeed, kHuggingface, kDeepseek})
    for (const int64_t k : {int64_t{2}, int64_t{3}})
      all.push_back({fmt::format("Switch{}k{}", static_cast<int>(convention), k),
                     with({{.type = LossType::kSwitch, .coef = 0.3, .convention = convention}}),
                     {8, k}});
  all.push_back(
      {"Sequence", with({{.type = LossType::kSwitch, .coef = 0.3, .level = Level::kSequence}}), {8, 2}, 3, 7, 9});
  all.push_back({"Global", with({{.type = LossType::kSwitch, .coef = 0.3, .level = Level::kGlobal}}), {8, 2}});
  all.push_back({"ModelScope",
                 with({{.type = LossType::kSwitch, .coef = 0.3, .convention = kHuggingface, .scope = Scope::kModel}}),
                 {8, 2}});
  all.push_back({"Several",
                 with({{.type = LossType::kZ, .coef = 0.2},
                       {.type = LossType::kSwitch, .coef = 0.1},
                       {.type = LossType::kZ, .coef = 0.1},
                       {.type = LossType::kSwitch, .coef = 0.2}}),
                 {8, 2}});
  all.push_back({"OneToken", with({{.coef = 0.1}}), {8, 2}, 1, 1, 0});
  all.push_back({"NothingButPadding", with({{.coef = 0.1}, {.type = LossType::kZ}}), {8, 2}, 1, 5, 5});
  all.push_back({"EmptyExperts", with({}), {64, 2}, 1, 3, 0});
  all.push_back({"ManyExperts", with({{.coef = 0.1}}), {512, 8}, 2, 9, 1});
  all.push_back({"AllExperts", with({}), {4, 4}});
  all.push_back({"OneExpert", with({}), {1, 1}});
  return all;
}

void prepare(MethodState& state, int64_t experts) {
  if (state.has("bias")) state.get("bias").copy_(random_tensor({experts}, at::kFloat, 5) * 0.1);
  if (state.has("last_counts")) state.get("last_counts").copy_(random_tensor({experts}, at::kFloat, 6).abs() * 100);
}

// Host and device in one type.
void compare(const Case& c, at::ScalarType dtype, double tolerance) {
  MoeLayer host(c.config, c.size, dtype);
  DeviceLayer device(c.config, c.size, dtype, dtype);
  prepare(host.state(), c.size.experts);
  prepare(device.state(), c.size.experts);
  const Batch batch = padded_batch(c.sequences, c.length, c.padding);
  const Tensor x = random_tensor({batch.tokens_count(), c.size.width}, dtype, 2);
  const Tensor dy = random_tensor({batch.tokens_count(), c.size.width}, dtype, 3);
  const auto expected = host.run(batch, x, dy);
  for (const bool again : {false, true}) {
    const auto own = device.run(batch, x, dy, again);
    expect_near(own.y, expected.y, tolerance, "y");
    expect_near(own.dx, expected.dx, tolerance, "dx");
    expect_near(own.drouter, expected.drouter, tolerance, "router");
    expect_near(own.dgate_up_E2FD, expected.dexperts[0].gate_up_E2FD, tolerance, "gate and up");
    expect_near(own.ddown_EDF, expected.dexperts[0].down_EDF, tolerance, "down");
  }
  EXPECT_EQ(device.reads(), 0) << "the host looks at nothing";
}

TEST(DeviceLayer, ComputesWhatTheHostComputes) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    compare(c, at::kDouble, 1e-12);
    compare(c, at::kFloat, 1e-5);
  }
}

TEST(DeviceLayer, AddsToTheGradientsOfTheMicroBatchBefore) {
  const Case c = cases()[0];
  DeviceLayer device(c.config, c.size, at::kDouble, at::kDouble);
  const Batch batch = padded_batch(c.sequences, c.length, c.padding);
  const Tensor x = random_tensor({batch.tokens_count(), c.size.width}, at::kDouble, 2);
  const auto alone = device.run(batch, x, x);
  device.fresh = false;
  const auto added = device.run(batch, x, x);
  expect_near(added.drouter - DeviceLayer::kHeld, alone.drouter, 1e-12, "router");
  expect_near(added.dgate_up_E2FD - DeviceLayer::kHeld, alone.dgate_up_E2FD, 1e-12, "gate and up");
  expect_near(added.ddown_EDF - DeviceLayer::kHeld, alone.ddown_EDF, 1e-12, "down");
}

// A token moves every number by a rounding of 2^-8 or so; choices stay, since scores come from the same rounded input.
TEST(DeviceLayer, InBf16IsWithinItsRoundingOfFloat) {
  for (const Case& c : cases()) {
    if (c.name == "NothingButPadding") continue;
    SCOPED_TRACE(c.name);
    DeviceLayer exact(c.config, c.size, at::kFloat, at::kFloat), rounded(c.config, c.size, at::kFloat, at::kBFloat16);
    const Batch batch = padded_batch(c.sequences, c.length, c.padding);
    const Tensor x = random_tensor({batch.tokens_count(), c.size.width}, at::kFloat, 2).to(at::kBFloat16);
    const Tensor dy = random_tensor({batch.tokens_count(), c.size.width}, at::kFloat, 3).to(at::kBFloat16);
    const auto expected = exact.run(batch, x.to(at::kFloat), dy.to(at::kFloat)), own = rounded.run(batch, x, dy);
    kernels::expect_same_bits(own.routed.weights_TK, expected.routed.weights_TK, "the router computes in float");
    EXPECT_EQ(own.y.scalar_type(), at::kBFloat16);
    EXPECT_EQ(own.drouter.scalar_type(), at::kFloat);
    const double tolerance = 0.03;
    expect_near(own.y, expected.y, tolerance, "y");
    expect_near(own.dx, expected.dx, tolerance, "dx");
    expect_near(own.drouter, expected.drouter, tolerance, "router");
    expect_near(own.dgate_up_E2FD, expected.dgate_up_E2FD, tolerance, "gate and up");
    expect_near(own.ddown_EDF, expected.ddown_EDF, tolerance, "down");
  }
}

TEST(DeviceLayer, TakesNoTokensAtAll) {
  const Case c = cases()[0];
  DeviceLayer device(c.config, c.size, at::kFloat, at::kFloat);
  const Batch batch = padded_batch(0, 7, 0);
  const Tensor none = at::zeros({0, c.size.width});
  const auto result = device.run(batch, none, none);
  EXPECT_EQ(result.y.sizes(), none.sizes());
  EXPECT_EQ(result.ddown_EDF.abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace conclave::moe
