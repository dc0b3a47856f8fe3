// SPDX-License-Identifier: Apache-2.0
// BASE layers and the auction that assigns tokens (methods.md 1.13 and 8).
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "moe/auction.h"
#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::loads;
using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using conclave::testing::Routed;
using kernels::random_tensor;

double total(std::span<const double> values, int64_t columns, const std::vector<int32_t>& assigned) {
  double sum = 0;
  for (size_t r = 0; r < assigned.size(); ++r) sum += values[r * columns + assigned[r]];
  return sum;
}

// The best of all assignments with R / E rows for each column.
double best_total(std::span<const double> values, int64_t columns, std::vector<int64_t> room, size_t row = 0) {
  if (row * columns == values.size()) return 0;
  double best = -std::numeric_limits<double>::infinity();
  for (int64_t e = 0; e < columns; ++e) {
    if (room[e] == 0) continue;
    --room[e];
    best = std::max(best, values[row * columns + e] + best_total(values, columns, room, row + 1));
    ++room[e];
  }
  return best;
}

// Rows in their order take the best column with room.
std::vector<int32_t> greedy(std::span<const double> values, int64_t columns) {
  const auto rows = std::ssize(values) / columns;
  std::vector<int64_t> room(columns, rows / columns);
  std::vector<int32_t> assigned;
  for (int64_t r = 0; r < rows; ++r) {
    int32_t best = -1;
    for (int32_t e = 0; e < columns; ++e)
      if (room[e] > 0 && (best < 0 || values[r * columns + e] > values[r * columns + best])) best = e;
    --room[best];
    assigned.push_back(best);
  }
  return assigned;
}

std::vector<int64_t> counts_of(const std::vector<int32_t>& assigned, int64_t columns) {
  std::vector<int64_t> counts(columns, 0);
  for (const int32_t e : assigned) ++counts.at(e);
  return counts;
}

TEST(BaseAuction, IsWithinEpsilonOfTheBestAssignment) {
  constexpr int64_t kRows = 8;
  for (const int64_t columns : {2, 4, 8}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      const Tensor tensor = random_tensor({kRows, columns}, at::kDouble, seed);
      const std::span<const double> values = elements<double>(tensor);
      const double best = best_total(values, columns, std::vector<int64_t>(columns, kRows / columns));
      for (const double epsilon : {1e-3, 0.1}) {
        const auto assigned = balanced_assignment(values, columns, {.epsilon = epsilon, .most_bids = 1'000'000});
        EXPECT_EQ(counts_of(assigned, columns), std::vector<int64_t>(columns, kRows / columns));
        EXPECT_GE(total(values, columns, assigned), best - kRows * epsilon - 1e-12) << columns << " seed " << seed;
      }
    }
  }
}

TEST(BaseAuction, IsBetterThanTakingWhatIsFree) {
  constexpr int64_t kRows = 256, kColumns = 8;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const Tensor tensor = random_tensor({kRows, kColumns}, at::kDouble, seed);
    const std::span<const double> values = elements<double>(tensor);
    const auto assigned = balanced_assignment(values, kColumns, {.epsilon = 0.01, .most_bids = 1'000'000});
    EXPECT_GT(total(values, kColumns, assigned), total(values, kColumns, greedy(values, kColumns)) + 1);
  }
}

TEST(BaseAuction, EndsAndStaysBalancedWhateverItIsGiven) {
  constexpr int64_t kRows = 24, kColumns = 4;
  const std::vector<double> equal(kRows * kColumns, 1.0);
  const std::vector<int64_t> even(kColumns, kRows / kColumns);
  EXPECT_EQ(counts_of(balanced_assignment(equal, kColumns, {.epsilon = 1e-9, .most_bids = 100'000}), kColumns), even);
  // Too few bids: what is left takes what is free.
  const Tensor tensor = random_tensor({kRows, kColumns}, at::kDouble, 1);
  for (const int64_t bids : {0, 5, 30})
    EXPECT_EQ(counts_of(balanced_assignment(elements<double>(tensor), kColumns, {.epsilon = 1e-9, .most_bids = bids}),
                        kColumns),
              even);
}

Routed base(int64_t experts, int64_t tokens) { return {{.type = "base"}, {.experts = experts, .top_k = 1}, tokens}; }

TEST(BaseRouter, GivesEachExpertEquallyManyTokensOfTraining) {
  const int64_t T = 64, E = 8;
  Routed setup = base(E, T);
  Tensor logits = random_tensor({T, E}, at::kDouble, 1);
  logits.select(1, 2) += 4.0;  // an expert that everyone likes
  EXPECT_EQ(loads(setup.route(logits)), std::vector<int64_t>(E, T / E));
  setup.moment.training = false;
  const Choice free = setup.route(logits);
  EXPECT_GT(loads(free)[2], T / 2) << "evaluation takes the best one";
  EXPECT_EQ(free.picks, Routed({}, {.experts = E, .top_k = 1}, T).route(logits).picks);
  EXPECT_NEAR(free.weights_C[5].item<double>(), at::sigmoid(logits[5][free.picks.ids_C[5]]).item<double>(), 1e-14);
}

TEST(BaseRouter, PaddingTakesNoPlace) {
  Routed setup = base(4, 24);
  const Tensor logits = random_tensor({24, 4}, at::kDouble, 1);
  for (int64_t t = 16; t < 24; ++t) setup.batch.segment_ids[t] = -1;
  const auto before = setup.route(logits).picks;
  Tensor other = logits.clone();
  other.narrow(0, 16, 8) = random_tensor({8, 4}, at::kDouble, 2) * 20;
  const auto after = setup.route(other).picks;
  std::vector<int32_t> real(before.ids_C.begin(), before.ids_C.begin() + 16);
  EXPECT_EQ(counts_of(real, 4), std::vector<int64_t>(4, 4));
  EXPECT_TRUE(std::equal(real.begin(), real.end(), after.ids_C.begin()));
}

TEST(BaseRouter, TokensThatExpertsDoNotDivideAndScoresThatAreNotFiniteEndToo) {
  Routed setup = base(4, 22);
  Tensor logits = random_tensor({22, 4}, at::kDouble, 1);
  for (const int64_t count : loads(setup.route(logits))) EXPECT_LE(count, 6);
  logits[3].fill_(std::numeric_limits<double>::quiet_NaN());
  logits[4][1] = std::numeric_limits<double>::infinity();
  for (const int64_t count : loads(setup.route(logits))) EXPECT_LE(count, 6);
}

// α F(x) is what y = α f(x) + (1 − α) x, f(x) = x + F(x), adds to x.
TEST(BaseRouter, SilentExpertsLeaveTheStreamAsItIs) {
  MoeConfig config;
  config.router = {.type = "base"};
  const MoeLayer layer(config, {.experts = 4, .top_k = 1}, at::kDouble);
  for (int64_t e = 0; e < 4; ++e) layer.down(e).zero_();
  const Tensor x = random_tensor({20, 6}, at::kDouble, 2);
  EXPECT_EQ(layer.run(random_batch(1, 20, 23, 1), x, x).y.abs().max().item<double>(), 0.0);
}

// ∂L/∂c_e = Σ_t (f(x) − x)·g · α(1 − α) x.
TEST(BaseRouter, CentroidsLearnByTheWeightAlone) {
  MoeConfig config;
  config.router = {.type = "base"};
  const MoeLayer layer(config, {.experts = 4, .top_k = 1}, at::kDouble);
  const Tensor x = random_tensor({20, 6}, at::kDouble, 2), g = random_tensor({20, 6}, at::kDouble, 3);
  const auto result = layer.run(random_batch(1, 20, 23, 1), x, g);
  Tensor expected = at::zeros_like(layer.router());
  for (int64_t t = 0; t < 20; ++t) {
    const int32_t e = result.decision.choice.picks.ids_C[t];
    const auto h = at::mm(x.narrow(0, t, 1), layer.gate_up(e).t()).chunk(2, 1);
    const Tensor f = at::mm(at::silu(h[0]) * h[1], layer.down(e).t())[0];
    const Tensor alpha = at::sigmoid((x[t] * layer.router()[e]).sum());
    expected[e] += (f * g[t]).sum() * alpha * (1 - alpha) * x[t];
  }
  EXPECT_LT((result.drouter - expected).abs().max().item<double>(), 1e-11);
}

TEST(BaseRouter, CentroidsBeginWithALengthOfATenth) {
  const auto router = Router::make({.type = "base"}, {});
  const auto blocks = router->blocks({.experts = 4, .top_k = 1, .hidden = 256});
  EXPECT_DOUBLE_EQ(blocks.at(0).init_std.value() * 16, 0.1);
}

}  // namespace
}  // namespace conclave::moe
