// SPDX-License-Identifier: Apache-2.0
// Made-up routings, and what every dispatcher has to do with them: the all-to-all is the reference, itself held to one
// rank by LayerRanks.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "comm/group.h"
#include "kernels/tensor_checks.h"
#include "moe/dispatcher.h"

namespace conclave::testing {

struct RoutingCase {
  std::string name;
  int64_t experts = 8, top_k = 2, width = 9;
  std::function<int64_t(int rank)> tokens;
  // Whether a choice survives; and which expert it is (default: any).
  std::function<bool(int rank, int64_t token, int64_t choice)> keeps = [](int, int64_t, int64_t) { return true; };
  std::vector<int32_t> favourites = {};  // nobody chooses another expert
};

inline std::vector<RoutingCase> routing_cases() {
  const auto some = [](int rank) { return 5 + 23 * rank; };
  std::vector<RoutingCase> cases;
  cases.push_back({.name = "UnevenTokens", .tokens = some});
  cases.push_back({.name = "AllChoices", .top_k = 8, .tokens = some});
  cases.push_back({.name = "OneTokenInAll", .tokens = [](int rank) { return rank == 1 ? 1 : 0; }});
  cases.push_back({.name = "NoTokenAtAll", .tokens = [](int) { return 0; }});
  cases.push_back({.name = "OneRankHasNone", .tokens = [](int rank) { return rank == 0 ? 0 : 40; }});
  cases.push_back({.name = "ManyExperts", .experts = 512, .top_k = 10, .width = 16, .tokens = some});
  cases.push_back({.name = "AllToOneExpert", .top_k = 1, .tokens = some, .favourites = {5}});
  cases.push_back({.name = "AllToTheLastRank", .tokens = some, .favourites = {6, 7}});
  cases.push_back({.name = "Drops", .top_k = 4, .tokens = some, .keeps = [](int rank, int64_t t, int64_t k) {
                     return (t * 7 + k * 3 + rank) % 5 > 1 && t % 6 != 2;
                   }});
  cases.push_back({.name = "EverythingDropped", .tokens = some, .keeps = [](int, int64_t, int64_t) { return false; }});
  return cases;
}

// Of rank `rank` in round `round`.
inline moe::Routing make_case_routing(const RoutingCase& c, int rank, int round) {
  const int64_t T = c.tokens(rank), E = c.experts;
  std::vector<int32_t> ids;
  std::vector<uint8_t> keep;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < c.top_k; ++k) {
      // Distinct for the choices of a token.
      const int64_t any = (t * 5 + rank * 3 + round + k * (c.top_k == E ? 1 : E / c.top_k)) % E;
      ids.push_back(c.favourites.empty() ? static_cast<int32_t>(any) : c.favourites[k]);
      keep.push_back(c.keeps(rank, t, k) ? 1 : 0);
    }
  }
  return moe::make_routing(moe::even_picks(std::move(ids), T), keep, {0, T}, E);
}

struct Exchanged {
  std::vector<moe::Segment> segments;
  Tensor rows, gates;  // what arrived
  Tensor y, dgates;    // what came back
};

// Rounds whose transfers are all under way at once, in one order on all ranks. `in_place`: results lie where the
// dispatcher wants them.
inline std::vector<Exchanged> exchange_rounds(const moe::Dispatcher& dispatcher, const RoutingCase& c, int rank,
                                              at::ScalarType dtype, int rounds, bool in_place) {
  std::vector<moe::Routing> routings;
  for (int i = 0; i < rounds; ++i) routings.push_back(make_case_routing(c, rank, i));
  std::vector<moe::DispatchPlan> plans;
  std::vector<moe::Transfer> sends, backs;
  std::vector<Exchanged> all(rounds);
  std::vector<Tensor> inputs;
  for (int i = 0; i < rounds; ++i) {
    const auto& routing = routings[i];
    plans.push_back(dispatcher.plan(routing));
    inputs.push_back(kernels::random_tensor({routing.tokens, c.width}, dtype, 10 * rank + i));
    const Tensor gates = kernels::random_tensor({routing.pairs()}, dtype, 1000 + 10 * rank + i);
    sends.push_back(dispatcher.start_send(plans[i], inputs[i], i % 2 == 0 ? gates : Tensor()));
  }
  for (int i = 0; i < rounds; ++i) {
    moe::Rows arrived = dispatcher.finish_send(plans[i], sends[i]);
    all[i].segments = plans[i].segments;
    all[i].rows = arrived.rows.clone();
    if (arrived.scalars.defined()) all[i].gates = arrived.scalars.clone();
    Tensor results = in_place ? plans[i].empty_results(arrived.rows) : at::empty_like(arrived.rows);
    results.copy_(arrived.rows * 1.5 + 0.25);
    Tensor dgates = arrived.scalars.defined() ? arrived.scalars * 3.0 : Tensor();
    backs.push_back(dispatcher.start_give_back(plans[i], results, dgates));
  }
  for (int i = 0; i < rounds; ++i) {
    moe::Rows home = dispatcher.finish_give_back(plans[i], backs[i]);
    all[i].y = home.rows;
    all[i].dgates = home.scalars;
    EXPECT_EQ(home.scalars.defined(), i % 2 == 0);
  }
  return all;
}

inline void expect_same_segments(const std::vector<moe::Segment>& got, const std::vector<moe::Segment>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t s = 0; s < got.size(); ++s) {
    EXPECT_EQ(got[s].expert, expected[s].expert);
    EXPECT_EQ(got[s].source, expected[s].source);
    EXPECT_EQ(got[s].begin, expected[s].begin);
    EXPECT_EQ(got[s].rows, expected[s].rows);
  }
}

// What arrives has the reference's bits; what comes back too where `bitwise`, else it is close.
inline void expect_exchanged(const Exchanged& got, const Exchanged& expected, bool bitwise) {
  expect_same_segments(got.segments, expected.segments);
  kernels::expect_same_bits(got.rows, expected.rows, "rows");
  ASSERT_EQ(got.gates.defined(), expected.gates.defined());
  if (got.gates.defined()) {
    kernels::expect_same_bits(got.gates, expected.gates, "gates");
    kernels::expect_same_bits(got.dgates, expected.dgates, "gradients of gates");
  }
  if (bitwise) {
    kernels::expect_same_bits(got.y, expected.y, "y");
  } else {
    ASSERT_EQ(got.y.sizes(), expected.y.sizes());
    const double scale = expected.y.numel() == 0 ? 1 : expected.y.abs().max().item<double>();
    const double worst = expected.y.numel() == 0 ? 0 : (got.y - expected.y).abs().max().item<double>();
    EXPECT_LE(worst, 1e-6 * std::max(scale, 1e-3)) << "y";
  }
}

// To bf16, or to E4M3 with a scale for each row.
inline Tensor rounded_rows(const Tensor& rows, moe::DispatchPayload payload) {
  if (rows.numel() == 0) return rows;
  if (payload != moe::DispatchPayload::kFp8) return rows.to(at::kBFloat16).to(rows.scalar_type());
  const Tensor scale = (rows.abs().amax({1}, true) / 448.0).to(at::kFloat);
  const Tensor safe = scale + scale.eq(0).to(at::kFloat);
  return ((rows / safe).to(at::kFloat8_e4m3fn).to(at::kFloat) * safe).to(rows.scalar_type());
}

// Rows of segments whose source is on another host than `rank`, rounded; the others as they are.
inline Tensor rounded_where_far(const Tensor& rows, const std::vector<moe::Segment>& segments,
                                const std::vector<int>& hosts, int rank,
                                moe::DispatchPayload payload = moe::DispatchPayload::kBf16) {
  Tensor expected = rows.clone();
  for (const auto& s : segments) {
    if (hosts[s.source] == hosts[rank]) continue;
    Tensor far = expected.narrow(0, s.begin, s.rows);
    far.copy_(rounded_rows(far, payload));
  }
  return expected;
}

}  // namespace conclave::testing
