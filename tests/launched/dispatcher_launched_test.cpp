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

INSTANTIATE_TEST_SUITE_P(All, DispatcherLaunchedTest, ::testing::ValuesIn(testing::routing_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::test
