// SPDX-License-Identifier: Apache-2.0
// Every dispatcher between processes: the cases of tests/moe/dispatcher_ranks_test.cpp.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include "config/fields.h"
#include "launched/launched_world.h"
#include "moe/dispatcher_cases.h"

namespace conclave::test {
namespace {

using moe::DispatchType;

class DispatcherLaunchedTest : public ::testing::TestWithParam<testing::RoutingCase> {};

TEST_P(DispatcherLaunchedTest, CarriesRowsAsTheAllToAllDoes) {
  at::set_num_threads(1);
  const comm::Group ep = launched_world().group();
  if (GetParam().experts % ep.size() != 0) GTEST_SKIP() << "experts do not divide over these ranks";
  const auto hosts = ep.hosts();
  const bool one_host = hosts == std::vector<int>(hosts.size(), 0);
  const auto make = [&](DispatchType type) {
    moe::DispatchConfig config;
    config.type = type;
    return moe::Dispatcher::make(config, ep);
  };
  const auto exchange = [&](const moe::Dispatcher& dispatcher, bool in_place) {
    return testing::exchange_rounds(dispatcher, GetParam(), ep.rank(), at::kFloat, 5, in_place);
  };
  const auto reference = exchange(*make(DispatchType::kAllToAll), false);
  for (const auto type : {DispatchType::kShared, DispatchType::kAllGather, DispatchType::kHierarchical}) {
    if (type == DispatchType::kShared && !one_host) continue;
    SCOPED_TRACE(config::enum_name(type));
    const auto dispatcher = make(type);
    for (const bool in_place : {false, true}) {
      const auto got = exchange(*dispatcher, in_place);
      for (size_t i = 0; i < got.size(); ++i)
        testing::expect_exchanged(got[i], reference[i], type == DispatchType::kShared);
    }
  }
}

// What arrives: from other hosts rounded, from this one not, gates never.
TEST_P(DispatcherLaunchedTest, RoundsRowsThatCrossBetweenHosts) {
  at::set_num_threads(1);
  const comm::Group ep = launched_world().group();
  if (GetParam().experts % ep.size() != 0) GTEST_SKIP() << "experts do not divide over these ranks";
  const auto hosts = ep.hosts();
  const auto exchange = [&](DispatchType type, moe::DispatchPayload payload) {
    moe::DispatchConfig config;
    config.type = type;
    config.payload = payload;
    return testing::exchange_rounds(*moe::Dispatcher::make(config, ep), GetParam(), ep.rank(), at::kFloat, 3, false);
  };
  const auto exact = exchange(DispatchType::kAllToAll, moe::DispatchPayload::kSame);
  const auto compare = [&](DispatchType type, moe::DispatchPayload payload) {
    SCOPED_TRACE(fmt::format("{} {}", config::enum_name(type), config::enum_name(payload)));
    const auto got = exchange(type, payload);
    for (size_t i = 0; i < got.size(); ++i) {
      testing::expect_same_segments(got[i].segments, exact[i].segments);
      const Tensor expected = testing::rounded_where_far(exact[i].rows, exact[i].segments, hosts, ep.rank(), payload);
      kernels::expect_same_bits(got[i].rows, expected, "rows");
      if (got[i].gates.defined()) kernels::expect_same_bits(got[i].gates, exact[i].gates, "gates");
      ASSERT_EQ(got[i].y.sizes(), exact[i].y.sizes());
      if (got[i].y.numel() == 0) continue;
      const double scale = std::max(exact[i].y.abs().max().item<double>(), 1e-3);
      const double bits = payload == moe::DispatchPayload::kFp8 ? 0.32 : 0.02;
      EXPECT_LE((got[i].y - exact[i].y).abs().max().item<double>(), bits * scale);
    }
  };
  for (const auto type : {DispatchType::kAllToAll, DispatchType::kAllGather, DispatchType::kHierarchical})
    for (const auto payload : {moe::DispatchPayload::kBf16, moe::DispatchPayload::kFp8}) compare(type, payload);
}

INSTANTIATE_TEST_SUITE_P(All, DispatcherLaunchedTest, ::testing::ValuesIn(testing::routing_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::test
