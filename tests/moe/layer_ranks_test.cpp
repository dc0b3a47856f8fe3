// SPDX-License-Identifier: Apache-2.0
// Every method's layer with its experts spread over ranks (threads) against the same layer on one rank: the same bits
// in outputs and gradients, since rows of one (source, expert) segment meet the same product.
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "support/moe_layer.h"
#include "support/moe_methods.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using testing::MoeLayer;

struct RanksCase {
  testing::Method method;
  int ranks;
  moe::DispatchType dispatch;
};

std::vector<RanksCase> cases(const std::vector<testing::Method>& methods) {
  std::vector<RanksCase> all;
  for (const auto& method : methods)
    for (const int ranks : {2, 4})
      for (const auto dispatch : {moe::DispatchType::kAllToAll, moe::DispatchType::kShared})
        all.push_back({method, ranks, dispatch});
  return all;
}

std::string name_of(const ::testing::TestParamInfo<RanksCase>& info) {
  return info.param.method.name + "On" + std::to_string(info.param.ranks) +
         (info.param.dispatch == moe::DispatchType::kShared ? "Shared" : "");
}

constexpr int64_t kWidth = 9;

struct Input {
  Batch batch;
  Tensor x, dy;
};

// What rank `rank` holds: ranks differ in tokens, and one has nothing but padding.
Input input_of(int rank, at::ScalarType dtype) {
  const int64_t T = 11 + 6 * rank;
  Input input{testing::random_batch(1, T, 23, 1, rank), kernels::random_tensor({T, kWidth}, dtype, 10 + rank),
              kernels::random_tensor({T, kWidth}, dtype, 20 + rank)};
  const int64_t first_padding = rank == 1 ? 0 : T - 2;
  for (int64_t t = first_padding; t < T; ++t) input.batch.segment_ids[t] = -1, input.batch.loss_mask[t] = 0;
  return input;
}

class LayerRanks : public ::testing::TestWithParam<RanksCase> {
 protected:
  // Compares every rank's results with one-rank layers, for a bias that may starve or overload experts.
  void compare(at::ScalarType dtype, const Tensor& bias) {
    const auto& [method, ranks, dispatch] = GetParam();
    auto config = method.config();
    config.dispatch.type = dispatch;
    auto alone = method.config();
    alone.dispatch.type = moe::DispatchType::kLocal;
    if (config.balance.losses.empty() && config.router.type == "topk")
      config.balance.losses = {{}, {.type = moe::LossType::kZ}};
    if (bias.defined()) config.balance.bias.update_rate = 1e-3;
    alone.balance = config.balance;
    const testing::LayerSize size{method.experts, method.top_k, kWidth, 7};
    test::run_ranks(ranks, [&, n = ranks](const comm::Group& ep) {
      MoeLayer layer(config, size, dtype, ep), local(alone, size, dtype);
      for (auto* l : {&layer, &local})
        if (bias.defined()) l->state().get("bias").copy_(bias);
      const Input own = input_of(ep.rank(), dtype);
      const auto result = layer.run(own.batch, own.x, own.dy);
      for (int source = 0; source < n; ++source) {
        const Input input = input_of(source, dtype);
        const auto expected = local.run(input.batch, input.x, input.dy);
        if (source == ep.rank()) {
          kernels::expect_same_bits(result.y, expected.y, "y");
          kernels::expect_same_bits(result.dx, expected.dx, "dx");
          if (expected.drouter.defined()) kernels::expect_same_bits(result.drouter, expected.drouter, "router");
          EXPECT_EQ(result.decision.statistics.dropped, expected.decision.statistics.dropped);
        }
        const int64_t count = size.experts / n, first = count * ep.rank();
        const auto& actual = result.dexperts[source];
        const auto& all = expected.dexperts[0];
        kernels::expect_same_bits(actual.gate_up_E2FD, all.gate_up_E2FD.narrow(0, first, count), "gate and up");
        kernels::expect_same_bits(actual.down_EDF, all.down_EDF.narrow(0, first, count), "down");
      }
      const Tensor evaluated = layer.run(own.batch, own.x, {}).y;
      kernels::expect_same_bits(evaluated, local.run(own.batch, own.x, {}).y, "y in evaluation");
    });
  }
};

TEST_P(LayerRanks, GiveTheBitsOfOneRank) {
  for (const auto dtype : kernels::kBothTypes) compare(dtype, {});
}

TEST_P(LayerRanks, GiveTheBitsOfOneRankWithAnExpertWithoutTokens) {
  Tensor bias = at::zeros({GetParam().method.experts});
  bias[1] = -100.0;
  compare(at::kFloat, bias);
}

TEST_P(LayerRanks, GiveTheBitsOfOneRankWhenAllTokensChooseTheLastExperts) {
  Tensor bias = at::zeros({GetParam().method.experts});
  bias.narrow(0, bias.size(0) - GetParam().method.top_k, GetParam().method.top_k).fill_(100.0);
  compare(at::kFloat, bias);
}

INSTANTIATE_TEST_SUITE_P(All, LayerRanks, ::testing::ValuesIn(cases(testing::all_methods())), name_of);

class RouterLayerRanks : public LayerRanks {};

TEST_P(RouterLayerRanks, GiveTheBitsOfOneRank) {
  for (const auto dtype : kernels::kBothTypes) compare(dtype, {});
}

INSTANTIATE_TEST_SUITE_P(All, RouterLayerRanks, ::testing::ValuesIn(cases(testing::router_methods())), name_of);
INSTANTIATE_TEST_SUITE_P(Compressions, RouterLayerRanks, ::testing::ValuesIn(cases(testing::compression_methods())),
                         name_of);

TEST(LayerRanksAllToAll, OnOneRankGivesTheBitsOfTheLocalDispatcher) {
  moe::MoeConfig config;
  config.dispatch.type = moe::DispatchType::kLocal;
  const Input input = input_of(0, at::kFloat);
  const auto local = MoeLayer(config, {8, 3, kWidth, 7}, at::kFloat).run(input.batch, input.x, input.dy);
  config.dispatch.type = moe::DispatchType::kAllToAll;
  const auto exchanged = MoeLayer(config, {8, 3, kWidth, 7}, at::kFloat).run(input.batch, input.x, input.dy);
  kernels::expect_same_bits(exchanged.y, local.y, "y");
  kernels::expect_same_bits(exchanged.dx, local.dx, "dx");
  kernels::expect_same_bits(exchanged.drouter, local.drouter, "router");
  kernels::expect_same_bits(exchanged.dexperts[0].gate_up_E2FD, local.dexperts[0].gate_up_E2FD, "gate and up");
}

}  // namespace
}  // namespace conclave
