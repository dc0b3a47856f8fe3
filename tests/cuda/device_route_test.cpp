// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <cmath>

#include "core/error.h"
#include "cuda/device_runs.h"
#include "kernels/moe_device.h"

// The reference is the same function on the CPU.
namespace conclave::kernels {
namespace {

class DeviceRouteTest : public DeviceTest {};

struct Case {
  int64_t sequences, length, experts;
  RouteRule rule;
  bool bias = false;
};

// One token, no tokens, one expert, k = E, sequences longer than a chunk and not a multiple of it, E that does not fill
// lanes, up to 512; every rule.
std::vector<Case> cases() {
  return {
      {1, 1, 1, {}},
      {1, 0, 4, {.top_k = 2}},
      {2, 5, 3, {.top_k = 3}},
      {3, 37, 8, {.top_k = 2, .normalise = true}, true},
      {2, 70, 64, {.top_k = 8, .scale = 2.5}},
      {1, 33, 33, {.top_k = 1, .over_picks = true}},
      {2, 9, 100, {.top_k = 6, .over_picks = true, .normalise = true, .scale = 0.5}, true},
      {2,
       40,
       128,
       {.top_k = 8, .sigmoid = true, .normalise = true, .scale = 2.5, .groups = 8, .kept_groups = 3, .group_best = 2},
       true},
      {1, 7, 60, {.top_k = 4, .groups = 12, .kept_groups = 5}},
      {1, 3, 6, {.top_k = 2, .sigmoid = true, .groups = 6, .kept_groups = 4}, true},
      {1, 5, 257, {.top_k = 16, .sigmoid = true}},
      {1, 4, 512, {.top_k = 8, .normalise = true, .groups = 8, .kept_groups = 4, .group_best = 2}, true},
      {1, 2, 512, {.top_k = 512}}};
}

std::string name_of(const Case& c) {
  return fmt::format("B{} S{} E{} k{} groups{}", c.sequences, c.length, c.experts, c.rule.top_k, c.rule.groups);
}

struct Inputs {
  explicit Inputs(const Case& c)
      : logits(random_tensor({c.sequences * c.length, c.experts}, at::kFloat, 1) * 2),
        bias(c.bias ? random_tensor({c.experts}, at::kFloat, 2) * 0.3 : Tensor()),
        segments(at::zeros({c.sequences, c.length}, at::kInt)) {
    // Every fifth token is padding.
    int32_t* ids = segments.mutable_data_ptr<int32_t>();
    for (int64_t t = 3; t < segments.numel(); t += 5) ids[t] = -1;
    // Ties: whole experts alike, and both zeros.
    if (c.experts > 4 && c.length > 0) {
      logits.select(1, 3).copy_(logits.select(1, 1));
      logits[0].zero_();
      logits[0][2] = -0.0f;
    }
  }
  Tensor logits, bias, segments;
};

std::vector<Tensor> all_of(const Routed& r) {
  return {r.ids_TK, r.counted_TK, r.chosen_BE,  r.first_BE,    r.selected_E, r.probs_TE,
          r.lse_T,  r.raw_TK,     r.weights_TK, r.affinity_BE, r.sums_2};
}
const std::vector<std::string> kNames = {"ids", "counted", "chosen",  "first",    "selected", "probs",
                                         "lse", "raw",     "weights", "affinity", "sums"};

TEST_F(DeviceRouteTest, PicksWeightsAndStatisticsAreThoseOfTheCpu) {
  for (const Case& c : cases()) {
    const Inputs in(c);
    const auto results = run_on_device([&] {
      return all_of(
          route(to_device(in.logits), c.bias ? to_device(in.bias) : Tensor(), to_device(in.segments), c.rule));
    });
    const auto expected = all_of(route(in.logits, in.bias, in.segments, c.rule));
    for (size_t i = 0; i < results.size(); ++i) {
      SCOPED_TRACE(fmt::format("{}, {}", name_of(c), kNames[i]));
      if (i < 5) {
        expect_same_bits(results[i], expected[i], "whole numbers");
      } else {
        expect_rounded(results[i].to(at::kFloat), expected[i], "numbers", 2);
      }
    }
  }
}

TEST_F(DeviceRouteTest, NanScoresArePickedLast) {
  const Case c{1, 6, 40, {.top_k = 3}};
  Inputs in(c);
  in.logits[1][5] = NAN;  // makes all of the token's probabilities NaN: picked by logits they are not
  RouteRule rule = c.rule;
  rule.over_picks = true;
  const auto results = run_on_device([&] {
    const Routed r = route(to_device(in.logits), Tensor(), to_device(in.segments), rule);
    return std::vector<Tensor>{r.ids_TK};
  });
  expect_same_bits(results[0], route(in.logits, Tensor(), in.segments, rule).ids_TK, "ids");
}

TEST_F(DeviceRouteTest, GradientsAreThoseOfTheCpu) {
  for (const Case& c : cases()) {
    const Inputs in(c);
    const Tensor dweights = random_tensor({c.sequences * c.length, c.rule.top_k}, at::kFloat, 3);
    const Tensor affinity = random_tensor({c.sequences, c.experts}, at::kDouble, 4);
    for (const int which : {1, 2, 4, 7}) {
      const auto gradient = [&](const auto& placed) {
        const Routed r = route(placed(in.logits), c.bias ? placed(in.bias) : Tensor(), placed(in.segments), c.rule);
        RouteGradients g{.z_scale = (which & 4) != 0 ? 0.01 : 0.0};
        if ((which & 1) != 0) g.weights_TK = placed(dweights);
        if ((which & 2) != 0) g.affinity_BE = placed(affinity);
        return std::vector<Tensor>{route_backward(r, placed(in.segments), g, c.rule)};
      };
      SCOPED_TRACE(fmt::format("{}, gradients {}", name_of(c), which));
      const auto results = run_on_device([&] { return gradient(to_device); });
      expect_rounded(results[0], gradient([](const Tensor& tensor) { return tensor; })[0], "dlogits", 2);
    }
  }
}

TEST_F(DeviceRouteTest, RefusesPicksThatSharedMemoryDoesNotHold) {
  run_on_device([] {
    const Tensor logits = to_device(random_tensor({2, 512}, at::kFloat, 1)),
                 segments = to_device(at::zeros({1, 2}, at::kInt));
    const RouteRule rule{.top_k = 512, .groups = 512, .kept_groups = 512};
    std::string message;
    try {
      route(logits, Tensor(), segments, rule);
    } catch (const ConfigError& error) {
      message = error.what();
    }
    EXPECT_EQ(message.substr(0, 77), "moe.top_k: 512 of 512 experts in 512 groups of which 512 are kept take 51216 ");
    return std::vector<Tensor>{};
  });
}

TEST_F(DeviceRouteTest, RefusesMoreExpertsThanItsRegistersHold) {
  run_on_device([] {
    const Tensor logits = to_device(random_tensor({2, 513}, at::kFloat, 1)),
                 segments = to_device(at::zeros({1, 2}, at::kInt));
    EXPECT_THROW(route(logits, Tensor(), segments, {}), BugError);
    return std::vector<Tensor>{};
  });
}

}  // namespace
}  // namespace conclave::kernels
