// SPDX-License-Identifier: Apache-2.0
// The MoE layer of the device path with its experts spread over ranks (threads), on tensors of the CPU, against the
// host's layer and its own on one rank: output, every gradient, and how often the host looks.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "comm/fake_nccl.h"
#include "comm/nccl_transport.h"
#include "kernels/tensor_checks.h"
#include "support/device_layer.h"
#include "support/moe_methods.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::DeviceLayer;
using conclave::testing::DeviceResult;
using conclave::testing::expect_near;
using conclave::testing::LayerSize;
using conclave::testing::MoeLayer;

constexpr int64_t kWidth = 10;

struct Case {
  std::string name;
  MoeConfig config = {};
  LayerSize size = {.experts = 8, .top_k = 2, .width = kWidth, .expert_width = 7};
  Tensor bias = {};
  std::vector<int64_t> tokens = {};    // of each rank; usual ones where there are none
  int64_t padding = 2;                 // at the end of each
  std::vector<int> only_padding = {};  // ranks without a token that counts
};

struct Input {
  Batch batch;
  Tensor x, dy;
};

Input input_of(const Case& c, int rank, at::ScalarType dtype) {
  const int64_t T = c.tokens.empty() ? 11 + 6 * rank : c.tokens[rank % c.tokens.size()];
  Input input{conclave::testing::random_batch(1, T, 23, 1, rank), kernels::random_tensor({T, kWidth}, dtype, 10 + rank),
              kernels::random_tensor({T, kWidth}, dtype, 20 + rank)};
  const bool none = std::count(c.only_padding.begin(), c.only_padding.end(), rank) > 0;
  for (int64_t t = none ? 0 : std::max<int64_t>(1, T - c.padding); t < T; ++t)
    input.batch.segment_ids[t] = -1, input.batch.loss_mask[t] = 0;
  return input;
}

Tensor bias_towards(int64_t experts, std::vector<int64_t> favourites) {
  Tensor bias = at::zeros({experts});
  for (const int64_t e : favourites) bias[e] = 100.0;
  return bias;
}

std::vector<Case> cases() {
  MoeConfig plain, sigmoid;
  plain.balance.losses = {{.coef = 0.1}, {.type = LossType::kZ, .coef = 0.1}};
  sigmoid.router.score = Score::kSigmoid;
  sigmoid.router.norm_topk_prob = true;
  sigmoid.router.routed_scaling_factor = 2.5;
  const auto biased = [&](std::string name, std::vector<int64_t> favourites, int64_t k) {
    Case c{.name = std::move(name), .config = plain, .bias = bias_towards(8, std::move(favourites))};
    c.config.balance.bias.update_rate = 1e-3;
    c.size.top_k = k;
    return c;
  };
  return {{.name = "Plain", .config = plain},
          {.name = "SigmoidOfThree", .config = sigmoid, .size = {8, 3, kWidth, 7}},
          biased("OneExpertHasAll", {5}, 1),
          biased("LastRankHasAll", {6, 7}, 2),
          biased("FirstRankHasAll", {0, 1}, 2),
          {.name = "OneTokenOnEachRank", .config = plain, .tokens = {1}},
          {.name = "OneTokenInAll", .config = plain, .tokens = {1}, .only_padding = {1, 2, 3}},
          {.name = "RanksWithPaddingOnly", .config = plain, .only_padding = {0, 2}},
          {.name = "NobodyHasATokenThatCounts", .config = plain, .only_padding = {0, 1, 2, 3}},
          {.name = "AllExperts", .config = plain, .size = {4, 4, kWidth, 7}, .padding = 0},
          {.name = "ManyExpertsForFewTokens", .config = plain, .size = {64, 2, kWidth, 7}, .tokens = {3, 1}}};
}

template <typename Layer>
void set_bias(Layer& layer, const Tensor& bias) {
  if (bias.defined()) layer.state().get("bias").copy_(bias);
}

// Expert gradients of a whole batch spread over ranks are sums over the ranks.
struct Expected {
  std::vector<conclave::testing::LayerResult> of_rank;
  Tensor dgate_up, ddown;
};

Expected on_host(const Case& c, int ranks, at::ScalarType dtype) {
  MoeLayer host(c.config, c.size, dtype);
  set_bias(host, c.bias);
  Expected expected;
  for (int r = 0; r < ranks; ++r) {
    const Input input = input_of(c, r, dtype);
    expected.of_rank.push_back(host.run(input.batch, input.x, input.dy));
    const auto& experts = expected.of_rank.back().dexperts[0];
    const auto add = [](Tensor& sum, const Tensor& more) { sum = sum.defined() ? sum + more : more; };
    add(expected.dgate_up, experts.gate_up_E2FD);
    add(expected.ddown, experts.down_EDF);
  }
  return expected;
}

// One rank of the layer against what the host says.
void compare(const Case& c, const comm::Group& ep, const Expected& expected, double tolerance) {
  const at::ScalarType dtype = expected.ddown.scalar_type();
  DeviceLayer layer(c.config, c.size, dtype, dtype, {ep});
  set_bias(layer, c.bias);
  const Input own = input_of(c, ep.rank(), dtype);
  const auto& alone = expected.of_rank[ep.rank()];
  const int64_t local = c.size.experts / ep.size(), first = local * ep.rank();
  for (const bool again : {false, true}) {
    const DeviceResult result = layer.run(own.batch, own.x, own.dy, again);
    expect_near(result.y, alone.y, tolerance, "y");
    expect_near(result.dx, alone.dx, tolerance, "dx");
    expect_near(result.drouter, alone.drouter, tolerance, "router");
    expect_near(result.dgate_up_E2FD, expected.dgate_up.narrow(0, first, local), tolerance, "gate and up");
    expect_near(result.ddown_EDF, expected.ddown.narrow(0, first, local), tolerance, "down");
    EXPECT_EQ(result.forward_reads, 1) << "the counts of the exchange";
    EXPECT_EQ(result.backward_reads, 0) << "what was saved tells everything";
  }
  const DeviceResult evaluated = layer.run(own.batch, own.x, {});
  expect_near(evaluated.y, alone.y, tolerance, "y in evaluation");
  EXPECT_EQ(evaluated.forward_reads, 1);
}

TEST(DeviceLayerRanks, ComputeWhatTheHostComputes) {
  for (const Case& c : cases())
    for (const int ranks : {2, 4})
      for (const auto& [dtype, tolerance] : {std::pair(at::kDouble, 1e-12), std::pair(at::kFloat, 1e-5)}) {
        SCOPED_TRACE(fmt::format("{} on {}", c.name, ranks));
        const Expected expected = on_host(c, ranks, dtype);
        test::run_ranks(ranks, [&, t = tolerance](const comm::Group& ep) { compare(c, ep, expected, t); });
      }
}

// Rows are the ones of one rank, so only sums over sources differ.
TEST(DeviceLayerRanks, ComputeWhatOneRankComputes) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    test::run_ranks(2, [&](const comm::Group& ep) {
      DeviceLayer spread(c.config, c.size, at::kDouble, at::kDouble, {ep}),
          alone(c.config, c.size, at::kDouble, at::kDouble);
      for (DeviceLayer* layer : {&spread, &alone}) set_bias(*layer, c.bias);
      const Input own = input_of(c, ep.rank(), at::kDouble);
      const DeviceResult one = alone.run(own.batch, own.x, own.dy), two = spread.run(own.batch, own.x, own.dy);
      expect_near(two.y, one.y, 1e-12, "y");
      expect_near(two.dx, one.dx, 1e-12, "dx");
      expect_near(two.drouter, one.drouter, 1e-12, "router");
      EXPECT_EQ(one.forward_reads + one.backward_reads, 0);
    });
  }
}

TEST(DeviceLayerRanks, AddToTheGradientsOfTheMicroBatchBefore) {
  const Case c = cases()[0];
  test::run_ranks(2, [&](const comm::Group& ep) {
    DeviceLayer layer(c.config, c.size, at::kDouble, at::kDouble, {ep});
    const Input own = input_of(c, ep.rank(), at::kDouble);
    const DeviceResult alone = layer.run(own.batch, own.x, own.dy);
    layer.fresh = false;
    const DeviceResult added = layer.run(own.batch, own.x, own.dy);
    expect_near(added.dgate_up_E2FD - DeviceLayer::kHeld, alone.dgate_up_E2FD, 1e-12, "gate and up");
    expect_near(added.ddown_EDF - DeviceLayer::kHeld, alone.ddown_EDF, 1e-12, "down");
  });
}

// Rows of bf16 and gates of float travel beside each other.
TEST(DeviceLayerRanks, InBf16AreWithinItsRoundingOfFloat) {
  for (const Case& c : cases()) {
    if (c.name == "NobodyHasATokenThatCounts") continue;
    SCOPED_TRACE(c.name);
    const auto rounded = [&](int rank) {
      Input input = input_of(c, rank, at::kFloat);
      return Input{input.batch, input.x.to(at::kBFloat16), input.dy.to(at::kBFloat16)};
    };
    test::run_ranks(2, [&](const comm::Group& ep) {
      DeviceLayer spread(c.config, c.size, at::kFloat, at::kBFloat16, {ep}),
          alone(c.config, c.size, at::kFloat, at::kBFloat16);
      for (DeviceLayer* layer : {&spread, &alone}) set_bias(*layer, c.bias);
      const Input own = rounded(ep.rank());
      const DeviceResult one = alone.run(own.batch, own.x, own.dy), two = spread.run(own.batch, own.x, own.dy);
      EXPECT_EQ(two.y.scalar_type(), at::kBFloat16);
      expect_near(two.y, one.y, 0.03, "y");
      expect_near(two.dx, one.dx, 0.03, "dx");
      expect_near(two.drouter, one.drouter, 0.03, "router");
    });
  }
}

// A read that ends because a peer was lost brings any numbers; nothing may be allocated by them.
TEST(DeviceLayerRanks, RefuseCountsThatNobodyCanHaveSent) {
  const DeviceExchange exchange{comm::Group()};
  kernels::HostReads reads;
  const Tensor sent = at::zeros({4}, at::kInt), received = at::zeros({4}, at::kInt);
  received[2] = -7;
  DeviceExchange::Counts counts{sent, received, {}};
  EXPECT_THROW(exchange.plan(counts, reads), CommError);
}

// What a GPU's memory holds travels over NCCL, which is made up here: its stream runs when somebody waits.
TEST(DeviceLayerRanks, ExchangeThroughNccl) {
  const auto fabric = std::make_shared<test::FakeFabric>();
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Expected expected = on_host(c, 2, at::kDouble);
    test::run_ranks(2, [&](const comm::Group& host) {
      const auto nccl = std::make_shared<test::FakeNccl>(fabric);
      const comm::Group ep(std::make_shared<test::StagedTransport>(comm::make_nccl_transport(nccl, host), nccl));
      compare(c, ep, expected, 1e-12);
    });
  }
}

}  // namespace
}  // namespace conclave::moe
