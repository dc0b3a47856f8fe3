// SPDX-License-Identifier: Apache-2.0
// The references of what a device computes around experts, against the host path that the methods' tests hold to the
// papers: choice, weights, statistics and order of rows with equal bits, gradients too.
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "kernels/rows.h"
#include "kernels/tensor_checks.h"
#include "moe/device_route.h"
#include "moe/statistics.h"
#include "support/moe_methods.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::Method;
using kernels::expect_same_bits;
using kernels::random_tensor;

// Methods that a device knows.
std::vector<Method> device_methods() {
  std::vector<Method> methods;
  for (const auto& all : {conclave::testing::all_methods(), conclave::testing::router_methods()})
    for (const auto& method : all) {
      const MoeConfig config = method.config();
      if (config.router.type == "topk" && !config.capacity.factor && config.router.jitter == 0 &&
          config.router.second == "always" && !config.router.top_p)
        methods.push_back(method);
    }
  methods.push_back({"ManyExperts", 512, 8, [](MoeConfig& c) { c.balance.bias.update_rate = 1e-3; }});
  methods.push_back({"AllExperts", 4, 4, [](MoeConfig& c) { c.router.norm_topk_prob = true; }});
  methods.push_back({"OneExpert", 1, 1, [](MoeConfig&) {}});
  return methods;
}

Tensor ints(const std::vector<int32_t>& values, at::IntArrayRef sizes) {
  Tensor tensor = at::zeros(sizes, at::kInt);
  std::copy(values.begin(), values.end(), elements<int32_t>(tensor).begin());
  return tensor;
}

template <typename T, typename U>
void expect_counts(const std::vector<T>& expected, const Tensor& actual, const char* what) {
  const auto own = elements<U>(actual);
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), own.begin(), own.end())) << what;
}

// One micro-batch of either path.
struct Case {
  Method method;
  int64_t sequences, length, padding;
  at::ScalarType dtype = at::kFloat;

  int64_t tokens() const { return sequences * length; }
  RouteShape shape() const { return {.experts = method.experts, .top_k = method.top_k}; }
  Batch batch() const {
    Batch batch = conclave::testing::random_batch(sequences, length, 23, 3);
    for (int64_t t = tokens() - padding; t < tokens(); ++t) batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;
    return batch;
  }
  // Coarse: many equal scores, whose order must be the same.
  Tensor logits() const { return (random_tensor({tokens(), method.experts}, dtype, 7) * 4).round() / 4; }
  MethodState state() const {
    MethodState state;
    if (method.config().balance.bias.update_rate > 0)
      state.declare("bias", random_tensor({method.experts}, at::kFloat, 9) * 0.1);
    return state;
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& method : device_methods())
    for (const auto dtype : kernels::kBothTypes) {
      all.push_back({method, 3, 7, 0, dtype});
      all.push_back({method, 2, 9, 11, dtype});  // a sequence of padding alone
      all.push_back({method, 1, 1, 0, dtype});
      all.push_back({method, 1, 4, 4, dtype});
    }
  return all;
}

void compare_choice(const Case& c, const Choice& host, const kernels::Routed& device, const Batch& batch) {
  expect_same_bits(device.probs_TE, host.probs_TE, "scores");
  expect_same_bits(device.lse_T, host.lse_T, "lse");
  const auto ids = elements<int32_t>(device.ids_TK), counted = elements<int32_t>(device.counted_TK);
  for (int64_t i = 0; i < c.tokens() * c.method.top_k; ++i) {
    const int64_t t = i / c.method.top_k, j = i % c.method.top_k;
    if (batch.segment_ids[t] < 0) {
      EXPECT_EQ(ids[i], -1);
      EXPECT_EQ(device.weights_TK[t][j].item<double>(), 0.0);
      continue;
    }
    ASSERT_EQ(ids[i], host.picks.ids_C[i]) << "token " << t;
    ASSERT_EQ(counted[i], host.counted().ids_C[i]) << "token " << t;
    EXPECT_EQ(device.raw_TK[t][j].item<double>(), host.raw_C[i].item<double>());
    EXPECT_EQ(device.weights_TK[t][j].item<double>(), host.weights_C[i].item<double>());
  }
}

Routing host_routing(const Choice& host, const Batch& batch) {
  std::vector<uint8_t> keep(host.picks.count());
  for (int64_t t = 0; t < batch.tokens_count(); ++t)
    for (int32_t i = host.picks.offsets_T1[t]; i < host.picks.offsets_T1[t + 1]; ++i)
      keep[i] = batch.segment_ids[t] >= 0;
  return make_routing(host.picks, keep, {0, batch.tokens_count()}, host.experts);
}

void compare_statistics(const RouterStatistics& host, const kernels::Routed& device, const Batch& batch,
                        const RouteShape& shape) {
  expect_counts<int64_t, int32_t>(host.chosen_BE, device.chosen_BE, "chosen");
  expect_counts<int64_t, int32_t>(host.first_BE, device.first_BE, "first");
  expect_counts<int64_t, int32_t>(host.selected_E, device.selected_E, "selected");
  expect_counts<double, double>(host.affinity_BE, device.affinity_BE, "affinity");
  const Tensor packed = packed_statistics(device);
  const auto s = unpacked_statistics(elements<double>(packed), host.tokens_B, host.targets_B, shape);
  EXPECT_EQ(s.chosen_BE, host.chosen_BE);
  EXPECT_EQ(s.first_BE, host.first_BE);
  EXPECT_EQ(s.selected_E, host.selected_E);
  EXPECT_EQ(s.dispatched_E, host.dispatched_E);
  EXPECT_EQ(s.affinity_BE, host.affinity_BE);
  EXPECT_NEAR(s.lse_squared, host.lse_squared, 1e-12 * std::abs(host.lse_squared));
  EXPECT_NEAR(s.entropy, host.entropy, 1e-12 * std::abs(host.entropy) + 1e-300);
  EXPECT_EQ(s.tokens(), host.tokens());
  EXPECT_EQ(s.sequences, batch.sequences);
}

void compare_rows(const Routing& host, const kernels::SlotMap& device) {
  const auto rows = elements<int32_t>(device.rows_N), picks = elements<int32_t>(device.picks_N);
  const auto ends = elements<int32_t>(device.ends_E), slots = elements<int32_t>(device.slots_TK);
  EXPECT_TRUE(std::equal(ends.begin(), ends.end(), host.offsets_E1.begin() + 1, host.offsets_E1.end()));
  for (int64_t n = 0; n < std::ssize(rows); ++n) {
    if (n >= host.pairs()) {
      EXPECT_EQ(rows[n], -1);
      EXPECT_EQ(picks[n], -1);
      continue;
    }
    EXPECT_EQ(rows[n], host.rows_N[n]);
    EXPECT_EQ(picks[n], host.picks_N[n]);
    EXPECT_EQ(slots[picks[n]], n);
  }
}

TEST(DeviceRouting, ChoosesWeighsCountsAndOrdersLikeTheHost) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(
        fmt::format("{} {}x{} -{} {}", c.method.name, c.sequences, c.length, c.padding, c10::toString(c.dtype)));
    const RouterConfig config = c.method.config().router;
    const Batch batch = c.batch();
    const MethodState state = c.state();
    const Choice host = Router::make(config, c.shape())->route(c.logits(), {batch, state, {}, c.dtype});
    const Tensor bias = state.get("bias");
    const auto device = kernels::route(c.logits(), bias.defined() ? bias.to(c.dtype) : bias,
                                       ints(batch.segment_ids, {c.sequences, c.length}), route_rule(config, c.shape()));
    compare_choice(c, host, device, batch);
    const Routing routing = host_routing(host, batch);
    compare_statistics(gather_statistics(host, routing, batch, c.method.top_k), device, batch, c.shape());
    compare_rows(routing, kernels::slot_map(device.ids_TK, device.selected_E));
  }
}

TEST(DeviceRouting, HasTheGradientOfTheHost) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(
        fmt::format("{} {}x{} -{} {}", c.method.name, c.sequences, c.length, c.padding, c10::toString(c.dtype)));
    const RouterConfig config = c.method.config().router;
    const Batch batch = c.batch();
    const MethodState state;
    const auto router = Router::make(config, c.shape());
    Choice host = router->route(c.logits(), {batch, state, {}, c.dtype});
    const kernels::RouteRule rule = route_rule(config, c.shape());
    const Tensor segments = ints(batch.segment_ids, {c.sequences, c.length});
    const auto device = kernels::route(c.logits(), {}, segments, rule);
    Tensor dweights = random_tensor({c.tokens(), c.method.top_k}, c.dtype, 11);
    for (int64_t t = 0; t < c.tokens(); ++t)
      if (batch.segment_ids[t] < 0) dweights[t].zero_();
    const Tensor affinity = random_tensor({c.sequences, c.method.experts}, at::kDouble, 13);
    std::vector<std::vector<double>> rows;
    for (int64_t b = 0; b < c.sequences; ++b) {
      const Tensor row = affinity[b].contiguous();
      rows.emplace_back(elements<double>(row).begin(), elements<double>(row).end());
    }
    ChoiceGradients gradients{.weights_C = dweights.flatten(), .logits_TE = at::zeros_like(host.logits_TE)};
    add_affinity_gradient(host, batch, rows, gradients.logits_TE);
    const Tensor expected = router->backward(host, gradients);
    const Tensor own =
        kernels::route_backward(device, segments, {.weights_TK = dweights, .affinity_BE = affinity}, rule);
    kernels::expect_close(own, expected, "dlogits");
    const Tensor with_z = kernels::route_backward(device, segments, {.z_scale = 0.5}, rule);
    const Tensor real = segments.view({-1, 1}).ge(0).to(c.dtype);
    kernels::expect_close(with_z, 0.5 * host.lse_T.unsqueeze(1) * host.logits_TE.softmax(1) * real, "z-loss");
  }
}

TEST(DeviceRouting, SumsTheRowsOfATokenInTheOrderOfItsPicks) {
  const Tensor slots = ints({2, 0, -1, -1, 1, -1}, {3, 2}), rows = random_tensor({4, 5}, at::kFloat, 1);
  Tensor y = at::zeros({3, 5});
  kernels::aggregate(rows, slots, y);
  expect_same_bits(y[0], rows[2] + rows[0], "two rows");
  expect_same_bits(y[1], at::zeros({5}), "padding");
  expect_same_bits(y[2], rows[1], "one row");
}

}  // namespace
}  // namespace conclave::moe
