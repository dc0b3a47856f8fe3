// SPDX-License-Identifier: Apache-2.0
// dMoE (methods.md 1.17) and the shared expert of DeepSeekMoE (1.7).
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "model/executors/sequential.h"
#include "support/expert_mesh.h"
#include "support/moe_layer.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using kernels::random_tensor;

// One token after the other, one expert after the other, nothing batched.
Tensor token_loop(const Tensor& x_TD, const conclave::testing::ReferenceWeights& weights, int64_t k) {
  std::vector<Tensor> rows;
  const int64_t F = weights.down_EDF.size(2);
  for (int64_t t = 0; t < x_TD.size(0); ++t) {
    const Tensor x = x_TD.narrow(0, t, 1);
    const Tensor p = at::softmax(at::mm(x, weights.router_ED.t()), 1);
    const auto [best, ids] = at::topk(p, k, 1);
    Tensor y = at::zeros_like(x);
    for (int64_t i = 0; i < k; ++i) {
      const int64_t e = ids[0][i].item<int64_t>();
      const Tensor h = at::mm(x, weights.gate_up_E2FD[e].t());
      const Tensor hidden = at::silu(h.narrow(1, 0, F)) * h.narrow(1, F, F);
      y = y + best[0][i] * at::mm(hidden, weights.down_EDF[e].t());
    }
    rows.push_back(y);
  }
  return at::cat(rows);
}

TEST(DroplessMoe, EqualsALoopOverTokens) {
  for (const auto dtype : kernels::kBothTypes) {
    const double tolerance = dtype == at::kDouble ? 1e-11 : 1e-5;
    for (const int64_t k : {1, 3, 5}) {
      MoeLayer layer({}, {5, k, 6, 7}, dtype);
      const auto weights = layer.weights();
      const Tensor x = random_tensor({21, 6}, dtype, 2).requires_grad_(true), dy = random_tensor({21, 6}, dtype, 3);
      const auto result = layer.run(conclave::testing::random_batch(1, 21, 23, 1), x.detach(), dy);
      const Tensor y = token_loop(x, weights, k);
      (y * dy).sum().backward();
      const auto near = [&](const Tensor& a, const Tensor& b) {
        EXPECT_LT((a - b).abs().max().item<double>(), tolerance * std::max(1.0, b.abs().max().item<double>())) << k;
      };
      near(result.y, y.detach());
      near(result.dx, x.grad());
      near(result.drouter, weights.router_ED.grad());
      near(result.dexperts[0].gate_up_E2FD, weights.gate_up_E2FD.grad());
      near(result.dexperts[0].down_EDF, weights.down_EDF.grad());
    }
  }
}

TEST(DroplessMoe, PaddingRowsAreZeroAndHaveZeroGradient) {
  MoeLayer layer({}, {5, 2, 6, 7}, at::kFloat);
  const auto result = layer.run(conclave::testing::random_batch(1, 21, 23, 1), random_tensor({21, 6}, at::kFloat, 2),
                                random_tensor({21, 6}, at::kFloat, 3));
  int64_t padding = 0;
  for (int64_t r = 0; r < result.plan.rows_R; ++r) {
    const bool real = result.plan.source_of_R[r] >= 0;
    padding += !real;
    EXPECT_EQ(result.rows[r].abs().max().item<float>() > 0, real);
    EXPECT_EQ(result.drows[r].abs().max().item<float>() > 0, real);
    EXPECT_EQ(result.dgates[r].abs().item<float>() > 0, real);
  }
  EXPECT_EQ(result.plan.rows_R - padding, 42);
  EXPECT_GT(padding, 0);
  for (const auto& segment : result.plan.segments) EXPECT_EQ(segment.rows % 16, 0);
}

TEST(DroplessMoe, AddsATokensResultsInTheOrderOfItsChoices) {
  const auto result =
      MoeLayer({}, {5, 3, 6, 7}, at::kFloat)
          .run(conclave::testing::random_batch(1, 21, 23, 1), random_tensor({21, 6}, at::kFloat, 2), {});
  const auto& routing = result.decision.routing;
  for (int64_t t = 0; t < 21; ++t) {
    ASSERT_EQ(routing.token_offsets_T1[t], 3 * t);
    for (int32_t j = 0; j < 3; ++j) {
      const int32_t pair = routing.token_rows_N[3 * t + j];
      EXPECT_EQ(routing.rows_N[pair], t);
      EXPECT_EQ(routing.picks_N[pair], 3 * t + j);
    }
  }
}

TEST(DroplessMoe, EqualsACapacityThatHoldsEveryToken) {
  const Batch batch = conclave::testing::random_batch(1, 33, 23, 1);
  const Tensor x = random_tensor({33, 6}, at::kFloat, 2), dy = random_tensor({33, 6}, at::kFloat, 3);
  const auto dropless = MoeLayer({}, {8, 3, 6, 7}, at::kFloat).run(batch, x, dy);
  for (const auto policy : {DropPolicy::kPosition, DropPolicy::kScore}) {
    MoeConfig config;
    config.capacity = {.factor = 8.0 / 3.0, .policy = policy};
    const auto capacity = MoeLayer(config, {8, 3, 6, 7}, at::kFloat).run(batch, x, dy);
    EXPECT_EQ(capacity.decision.statistics.dropped, 0);
    kernels::expect_same_bits(capacity.y, dropless.y, "y");
    kernels::expect_same_bits(capacity.dx, dropless.dx, "dx");
    kernels::expect_same_bits(capacity.drouter, dropless.drouter, "router");
    kernels::expect_same_bits(capacity.dexperts[0].down_EDF, dropless.dexperts[0].down_EDF, "down");
  }
}

model::TransformerConfig with_shared() {
  auto config = conclave::testing::tiny_config();
  config.moe.num_shared_experts = 2;
  return config;
}

// The view of a fused part by its own name.
Tensor part(const model::Transformer& m, const std::string& name) {
  for (const auto& parameter : m.parameters().all()) {
    int64_t offset = parameter.offset;
    for (const auto& p : parameter.parts) {
      const int64_t count = nn::element_count(p.shape);
      if (p.name == name) return m.parameters().flat(parameter.expert).narrow(0, offset, count);
      offset += count;
    }
  }
  throw UsageError("no tensor {}", name);
}

TEST(DroplessDeepSeekMoe, WithoutTheRoutedPartIsADenseLayerOfTheSharedWidth) {
  model::Transformer moe(with_shared());
  auto config = conclave::testing::tiny_config();
  config.moe.layers = LayerPattern{2, 1};
  config.model.ffn_hidden_size = 2 * 12;
  model::Transformer dense(config);
  for (int l = 0; l < 2; ++l) {
    const std::string layer = "layers." + std::to_string(l) + ".";
    for (const char* which : {"gate", "up", "down"})
      part(dense, layer + "ffn." + which + ".weight").copy_(part(moe, layer + "moe.shared." + which + ".weight"));
    for (int e = 0; e < 4; ++e) part(moe, layer + "moe.experts." + std::to_string(e) + ".down.weight").zero_();
  }
  const Batch batch = conclave::testing::random_batch(2, 9, 23, 3);
  nn::Frame a = moe.frame(batch, nullptr), b = dense.frame(batch, nullptr);
  model::SequentialExecutor(moe).run(a);
  model::SequentialExecutor(dense).run(b);
  kernels::expect_same_bits(moe.hidden(a), dense.hidden(b), "hidden");
}

TEST(DroplessDeepSeekMoeRanks, SharedParametersAreOnEveryRankAndNeverSpread) {
  test::run_ranks(2, [](const comm::Group& ep) {
    const model::Transformer m(with_shared(), test::expert_mesh(ep));
    int shared = 0, routed = 0;
    for (const auto& parameter : m.parameters().all()) {
      for (const auto& p : parameter.parts) {
        const bool expert = p.name.find("moe.experts.") != std::string::npos;
        EXPECT_EQ(parameter.expert, expert) << p.name;
        shared += p.name.find("moe.shared.") != std::string::npos;
        routed += expert;
      }
    }
    EXPECT_EQ(shared, 2 * 3);      // layers × (gate, up, down)
    EXPECT_EQ(routed, 2 * 2 * 3);  // layers × experts of this rank × the same
  });
}

}  // namespace
}  // namespace conclave::moe
