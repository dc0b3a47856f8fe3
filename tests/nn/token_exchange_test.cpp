// SPDX-License-Identifier: Apache-2.0
// The seams between ranks that share tokens and ranks that have all of them (methods.md 3.7, 8): slicing and gathering
// undo each other, and each goes backward as the transposed matrix says.
#include "nn/token_exchange.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/tensor_checks.h"
#include "support/ranks.h"

namespace conclave::nn {
namespace {

using kernels::random_tensor;

constexpr int64_t kTokens = 12, kWidth = 5;

bool holds_all(TokenMove move, bool after) {
  switch (move) {
    case TokenMove::kGather:
      return after;
    case TokenMove::kSlice:
    case TokenMove::kReduceScatter:
      return !after;
    default:
      return true;
  }
}

double sum_over(const comm::Group& tp, double value) {
  double sum = 0;
  for (const auto& text : tp.all_gather_text(fmt::format("{:a}", value))) sum += std::stod(text);
  return sum;
}

// ⟨move(x), y⟩ = ⟨x, back(y)⟩, all ranks' numbers together.
void expect_adjoint(const comm::Group& tp, TokenMove move, TokenMove back) {
  const auto drawn = [&](bool all, uint64_t seed) {
    return random_tensor({all ? kTokens : kTokens / tp.size(), kWidth}, at::kDouble, seed + tp.rank());
  };
  const Tensor x = drawn(holds_all(move, false), 10), y = drawn(holds_all(move, true), 20);
  const double forward = sum_over(tp, (move_tokens(move, x, tp) * y).sum().item<double>());
  const double backward = sum_over(tp, (x * move_tokens(back, y, tp)).sum().item<double>());
  EXPECT_NEAR(forward, backward, 1e-12 * std::max(1.0, std::abs(forward))) << int(move);
}

TEST(TokenExchangeRanks, SlicingAndGatheringUndoEachOther) {
  for (const int ranks : {1, 2, 4}) {
    test::run_ranks(ranks, [&](const comm::Group& tp) {
      const Tensor all = random_tensor({kTokens, kWidth}, at::kFloat, 1);
      const Tensor own = move_tokens(TokenMove::kSlice, all, tp);
      EXPECT_EQ(own.size(0), kTokens / ranks);
      EXPECT_TRUE(own.equal(all.narrow(0, tp.rank() * own.size(0), own.size(0))));
      kernels::expect_same_bits(move_tokens(TokenMove::kGather, own, tp), all, "gathered");
      const Tensor mine = random_tensor({kTokens / ranks, kWidth}, at::kFloat, 2 + tp.rank());
      kernels::expect_same_bits(move_tokens(TokenMove::kSlice, move_tokens(TokenMove::kGather, mine, tp), tp), mine,
                                "sliced");
    });
  }
}

TEST(TokenExchangeRanks, EachDirectionIsTheAdjointOfTheOther) {
  for (const int ranks : {1, 2, 4}) {
    test::run_ranks(ranks, [&](const comm::Group& tp) {
      expect_adjoint(tp, TokenMove::kGather, TokenMove::kReduceScatter);
      expect_adjoint(tp, TokenMove::kReduceScatter, TokenMove::kGather);
      expect_adjoint(tp, TokenMove::kAllReduce, TokenMove::kAllReduce);
    });
  }
}

// All ranks hold the same on one side, so its inner product counts once.
TEST(TokenExchangeRanks, SharingTokensOutGoesBackwardAsJoiningThemAndTheOtherWayRound) {
  EXPECT_EQ(kShareTokens.forward, TokenMove::kSlice);
  EXPECT_EQ(kShareTokens.backward, TokenMove::kGather);
  EXPECT_EQ(kJoinTokens.forward, kShareTokens.backward);
  EXPECT_EQ(kJoinTokens.backward, kShareTokens.forward);
  for (const int ranks : {2, 4}) {
    test::run_ranks(ranks, [&](const comm::Group& tp) {
      const Tensor all = random_tensor({kTokens, kWidth}, at::kDouble, 1),
                   own = random_tensor({kTokens / ranks, kWidth}, at::kDouble, 2 + tp.rank());
      const double shared = sum_over(tp, (move_tokens(kShareTokens.forward, all, tp) * own).sum().item<double>()),
                   joined = (all * move_tokens(kShareTokens.backward, own, tp)).sum().item<double>();
      EXPECT_NEAR(shared, joined, 1e-12 * std::max(1.0, std::abs(joined)));
    });
  }
}

}  // namespace
}  // namespace conclave::nn
