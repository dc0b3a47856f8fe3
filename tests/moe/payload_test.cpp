// SPDX-License-Identifier: Apache-2.0
// moe.dispatch.payload: bf16 and fp8. Rows that cross between hosts are rounded once, to nearest even, on each way;
// rows within a host, gates and their gradients have the bits that they have without.
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "config/fields.h"
#include "moe/dispatcher_cases.h"
#include "moe/expert_dropout.h"
#include "support/ranks.h"

namespace conclave {
namespace {

using moe::DispatchType;
using testing::RoutingCase;

struct PayloadCase {
  moe::DispatchPayload payload;
  DispatchType type;
  std::vector<int> hosts;
  RoutingCase routing;
};

std::vector<PayloadCase> payload_cases() {
  std::vector<PayloadCase> all;
  for (const auto& routing : testing::routing_cases())
    for (const std::vector<int>& hosts :
         {std::vector{0, 1}, {0, 0, 1, 1}, {2, 1, 2, 1}, {0, 0, 0, 1}, {3, 2, 1, 0}, {1, 1}, {0, 0, 0, 0}})
      for (const auto type : {DispatchType::kAllToAll, DispatchType::kAllGather, DispatchType::kHierarchical})
        for (const auto payload : {moe::DispatchPayload::kBf16, moe::DispatchPayload::kFp8})
          all.push_back({payload, type, hosts, routing});
  return all;
}

std::unique_ptr<moe::Dispatcher> make(DispatchType type, moe::DispatchPayload payload, const comm::Group& ep) {
  moe::DispatchConfig config;
  config.type = type;
  config.payload = payload;
  return moe::Dispatcher::make(config, ep);
}

struct Sent {
  moe::DispatchPlan plan;
  moe::Rows arrived;
};

Sent send(const moe::Dispatcher& dispatcher, const moe::Routing& routing, const Tensor& x, const Tensor& gates) {
  Sent sent{dispatcher.plan(routing), {}};
  auto transfer = dispatcher.start_send(sent.plan, x, gates);
  sent.arrived = dispatcher.finish_send(sent.plan, transfer);
  return sent;
}

moe::Rows give_back(const moe::Dispatcher& dispatcher, const Sent& sent, const Tensor& results) {
  auto transfer = dispatcher.start_give_back(sent.plan, results, sent.arrived.scalars * 3.0);
  return dispatcher.finish_give_back(sent.plan, transfer);
}

void expect_near(const Tensor& got, const Tensor& expected, moe::DispatchPayload payload) {
  ASSERT_EQ(got.sizes(), expected.sizes());
  if (got.numel() == 0) return;
  // Eight bits of each term, or four.
  const double scale = std::max(expected.abs().max().item<double>(), 1e-3);
  const double bits = payload == moe::DispatchPayload::kFp8 ? 0.16 : 0.01;
  EXPECT_LE((got - expected).abs().max().item<double>(), bits * scale);
}

class PayloadRanks : public ::testing::TestWithParam<PayloadCase> {};

TEST_P(PayloadRanks, RoundsRowsThatCrossBetweenHostsAndNothingElse) {
  const auto& [payload, type, hosts, c] = GetParam();
  test::run_ranks_on(hosts, [&, payload = payload, type = type, &hosts = hosts, &c = c](const comm::Group& ep) {
    const auto plain = make(DispatchType::kAllToAll, moe::DispatchPayload::kSame, ep);
    const auto dispatcher = make(type, payload, ep);
    for (const auto dtype : kernels::kBothTypes) {
      const auto routing = testing::make_case_routing(c, ep.rank(), 0);
      const Tensor x = kernels::random_tensor({routing.tokens, c.width}, dtype, ep.rank());
      const Tensor gates = kernels::random_tensor({routing.pairs()}, dtype, 1000 + ep.rank());
      const Sent expected = send(*plain, routing, x, gates), got = send(*dispatcher, routing, x, gates);
      const auto& segments = expected.plan.segments;
      testing::expect_same_segments(got.plan.segments, segments);
      kernels::expect_same_bits(got.arrived.rows,
                                testing::rounded_where_far(expected.arrived.rows, segments, hosts, ep.rank(), payload),
                                "rows that arrived");
      kernels::expect_same_bits(got.arrived.scalars, expected.arrived.scalars, "gates");
      const Tensor results = expected.arrived.rows * 1.5 + 0.25;
      const auto home = give_back(*dispatcher, got, results);
      const auto terms = testing::rounded_where_far(results, segments, hosts, ep.rank(), payload);
      const auto home_rounded = give_back(*plain, expected, terms);
      kernels::expect_same_bits(home.scalars, home_rounded.scalars, "gradients of gates");
      // The others round sums. Of one row each, these are the rows.
      if (type == DispatchType::kAllToAll || c.top_k == 1) {
        kernels::expect_same_bits(home.rows, home_rounded.rows, "sums");
      } else {
        expect_near(home.rows, give_back(*plain, expected, results).rows, payload);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, PayloadRanks, ::testing::ValuesIn(payload_cases()), [](const auto& info) {
  std::string hosts;
  for (const int host : info.param.hosts) hosts += static_cast<char>('a' + host);
  return fmt::format("{}_{}_{}_{}", config::enum_name(info.param.payload), config::enum_name(info.param.type), hosts,
                     info.param.routing.name);
});

// Halves go to the even neighbour, and what is not finite stays so.
TEST(PayloadRanksRounding, IsToNearestEven) {
  test::run_ranks_on({0, 1}, [](const comm::Group& ep) {
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> sent{1.0f, 1.00390625f, 1.01171875f, -1.00390625f, 1.004f, 3.0e38f, 3.4e38f, inf, nan};
    const std::vector<float> expected{1.0f, 1.0f, 1.015625f, -1.0f, 1.0078125f, 3.0040553e38f, inf, inf, nan};
    const auto dispatcher = make(DispatchType::kAllToAll, moe::DispatchPayload::kBf16, ep);
    // The one token of each rank goes to the other one's expert.
    const auto routing = moe::make_routing(moe::even_picks({1 - ep.rank()}, 1), std::vector<uint8_t>{1}, {0, 1}, 2);
    const Tensor x = at::tensor(sent).view({1, -1});
    const auto arrived = send(*dispatcher, routing, x, at::ones({1})).arrived.rows;
    for (size_t i = 0; i < sent.size(); ++i) {
      const float got = arrived[0][static_cast<int64_t>(i)].item<float>();
      if (std::isfinite(expected[i])) {
        EXPECT_NEAR(got, expected[i], 1e-5 * std::abs(expected[i])) << sent[i];
      } else {
        EXPECT_EQ(std::isnan(got), std::isnan(expected[i])) << sent[i];
        EXPECT_EQ(std::isinf(got), std::isinf(expected[i])) << sent[i];
      }
    }
  });
}

// The largest of a row is kept, small ones lose their last bits; a row of zeros stays, and what is not finite spoils
// its row alone.
TEST(PayloadRanksRounding, OfFp8HasAScaleForEachRow) {
  test::run_ranks_on({0, 1}, [](const comm::Group& ep) {
    const float inf = std::numeric_limits<float>::infinity();
    const Tensor x =
        at::tensor(std::vector<float>{7e-5f, 1e-5f, -3e-9f, 0, 0, 0, 896, 1.9f, -34, 1, inf, 2}).view({4, 3});
    const auto dispatcher = make(DispatchType::kAllToAll, moe::DispatchPayload::kFp8, ep);
    const int32_t other = 1 - ep.rank();
    const auto routing =
        moe::make_routing(moe::even_picks({other, other, other, other}, 4), std::vector<uint8_t>(4, 1), {0, 4}, 2);
    const Tensor got = send(*dispatcher, routing, x, at::ones({4})).arrived.rows;
    const auto number = [&](int64_t row, int64_t column) { return got[row][column].item<float>(); };
    EXPECT_NEAR(number(0, 0), 7e-5f, 1e-11f);
    EXPECT_NEAR(number(0, 1), 1e-5f, 1e-5f / 16);
    EXPECT_NEAR(number(0, 2), 0, 1e-8f);
    EXPECT_EQ(got[1].abs().sum().item<float>(), 0);
    EXPECT_EQ(number(2, 0), 896);
    EXPECT_EQ(number(2, 1), 1.875f);
    EXPECT_EQ(number(2, 2), -32) << "-34 / 2 = -17 lies between -16 and -18, and 8 is even";
    EXPECT_FALSE(std::isfinite(number(3, 1)));
  });
}

// Global ids travel as rows for dropout inside experts: a wrong one would draw for another token.
TEST(PayloadRanksTokens, ArriveExactInEveryFormat) {
  for (const auto payload : {moe::DispatchPayload::kBf16, moe::DispatchPayload::kFp8})
    test::run_ranks_on({0, 1}, [payload](const comm::Group& ep) {
      const std::vector<int64_t> ids{0, 1, 15, 16, 255, 70000, 123456789012345, (int64_t{1} << 48) - 1};
      const auto count = std::ssize(ids);
      const auto dispatcher = make(DispatchType::kAllToAll, payload, ep);
      const std::vector<int32_t> others(count, 1 - ep.rank());
      const auto routing =
          moe::make_routing(moe::even_picks(others, count), std::vector<uint8_t>(count, 1), {0, count}, 2);
      const Tensor got = send(*dispatcher, routing, moe::token_digits(ids, at::kFloat), at::ones({count})).arrived.rows;
      auto arrived = moe::tokens_of(got);
      arrived.resize(count);  // padding behind them
      EXPECT_EQ(arrived, ids);
    });
}

// Parts of an expert on two hosts: what their ranks gather and add is rounded as well.
TEST(PayloadRanksParts, RowsBetweenHostsOfEtpAreRounded) {
  for (const auto payload : {moe::DispatchPayload::kBf16, moe::DispatchPayload::kFp8})
    test::run_ranks_on({0, 1}, [payload](const comm::Group& etp) {
      const RoutingCase c{.name = "", .tokens = [](int rank) { return 20 + rank; }};
      const auto routing = testing::make_case_routing(c, etp.rank(), 0);
      const Tensor x = kernels::random_tensor({routing.tokens, c.width}, at::kFloat, etp.rank());
      const Tensor gates = kernels::random_tensor({routing.pairs()}, at::kFloat, 7);
      const auto over = [&](moe::DispatchPayload payload) {
        auto inner = make(DispatchType::kLocal, moe::DispatchPayload::kSame, comm::Group());
        return moe::Dispatcher::over_expert_parts(std::move(inner), etp, payload);
      };
      const auto plain = over(moe::DispatchPayload::kSame), dispatcher = over(payload);
      const Sent expected = send(*plain, routing, x, gates), got = send(*dispatcher, routing, x, gates);
      std::vector<Tensor> parts;
      for (const auto& s : expected.plan.segments) {
        const Tensor rows = expected.arrived.rows.narrow(0, s.begin, s.rows);
        parts.push_back(s.source % 2 == etp.rank() ? rows : testing::rounded_rows(rows, payload));
      }
      kernels::expect_same_bits(got.arrived.rows, at::cat(parts), "rows");
      kernels::expect_same_bits(got.arrived.scalars, expected.arrived.scalars, "gates");
      const auto home = give_back(*dispatcher, got, expected.arrived.rows);
      const auto home_plain = give_back(*plain, expected, expected.arrived.rows);
      kernels::expect_same_bits(home.scalars, home_plain.scalars, "gradients of gates");
      expect_near(home.rows, home_plain.rows, payload);
      EXPECT_FALSE(home.rows.equal(home_plain.rows));
    });
}

}  // namespace
}  // namespace conclave
