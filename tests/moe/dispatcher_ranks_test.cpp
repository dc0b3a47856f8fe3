// SPDX-License-Identifier: Apache-2.0
// Every dispatcher against the all-to-all, on made-up routings, with several transfers under way at once.
#include <ATen/ops/empty_like.h>
#include <gmock/gmock.h>

#include <chrono>
#include <future>
#include <set>

#include "config/fields.h"
#include "core/error.h"
#include "moe/dispatcher_cases.h"
#include "support/ranks.h"

namespace conclave {
namespace {

using moe::DispatchType;
using testing::RoutingCase;

struct DispatcherCase {
  DispatchType type;
  std::vector<int> hosts;
  RoutingCase routing;
};

bool one_host(const std::vector<int>& hosts) {
  return std::all_of(hosts.begin(), hosts.end(), [&](int host) { return host == hosts[0]; });
}

bool is_bitwise(DispatchType type) { return type == DispatchType::kShared; }

std::vector<DispatcherCase> dispatcher_cases() {
  std::vector<DispatcherCase> all;
  for (const auto& routing : testing::routing_cases())
    for (const std::vector<int>& hosts : {std::vector{0},
                                          {0, 0},
                                          {0, 1},
                                          {0, 0, 0, 0},
                                          {0, 0, 1, 1},
                                          {2, 1, 2, 1},
                                          {0, 0, 0, 1},
                                          {0, 1, 1, 1},
                                          {3, 2, 1, 0}})
      for (const auto type : {DispatchType::kShared, DispatchType::kAllGather, DispatchType::kHierarchical})
        if (type != DispatchType::kShared || one_host(hosts)) all.push_back({type, hosts, routing});
  return all;
}

std::string name_of_case(const ::testing::TestParamInfo<DispatcherCase>& info) {
  std::string hosts;
  for (const int host : info.param.hosts) hosts += static_cast<char>('a' + host);
  return fmt::format("{}_{}_{}", config::enum_name(info.param.type), hosts, info.param.routing.name);
}

std::unique_ptr<moe::Dispatcher> make(DispatchType type, const comm::Group& ep) {
  moe::DispatchConfig config;
  config.type = type;
  return moe::Dispatcher::make(config, ep);
}

class DispatcherRanks : public ::testing::TestWithParam<DispatcherCase> {};

TEST_P(DispatcherRanks, CarriesRowsAsTheAllToAllDoes) {
  const auto& [type, hosts, routing] = GetParam();
  test::run_ranks_on(hosts, [&, type = type, &routing = routing](const comm::Group& ep) {
    const auto reference = make(DispatchType::kAllToAll, ep), dispatcher = make(type, ep);
    for (const auto dtype : kernels::kBothTypes) {
      for (const bool in_place : {false, true}) {
        const auto expected = testing::exchange_rounds(*reference, routing, ep.rank(), dtype, 5, in_place);
        const auto got = testing::exchange_rounds(*dispatcher, routing, ep.rank(), dtype, 5, in_place);
        for (size_t i = 0; i < got.size(); ++i) testing::expect_exchanged(got[i], expected[i], is_bitwise(type));
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, DispatcherRanks, ::testing::ValuesIn(dispatcher_cases()), name_of_case);

// Rows of a rank are under way while another still computes; only the end of an exchange waits.
TEST(DispatcherRanksStart, ReturnsBeforeOthersHaveCome) {
  using namespace std::chrono_literals;
  for (const auto type : {DispatchType::kAllToAll, DispatchType::kAllGather}) {
    std::promise<void> gone;
    auto first_is_gone = gone.get_future().share();
    test::run_ranks_on({0, 1}, [&](const comm::Group& ep) {
      const RoutingCase c{.name = "", .tokens = [](int) { return 30; }};
      const auto routing = testing::make_case_routing(c, ep.rank(), 0);
      const auto dispatcher = make(type, ep);
      const auto plan = dispatcher->plan(routing);
      const Tensor x = kernels::random_tensor({30, c.width}, at::kFloat, ep.rank());
      const bool waited = ep.rank() == 0 || first_is_gone.wait_for(20s) == std::future_status::ready;
      EXPECT_TRUE(waited) << "the first one waits for the other";
      auto sent = dispatcher->start_send(plan, x, kernels::random_tensor({routing.pairs()}, at::kFloat, 5));
      if (ep.rank() == 0) gone.set_value();
      dispatcher->finish_send(plan, sent);
    });
  }
}

TEST(DispatcherRanksShared, RowsThatArrivedMayBeGivenBackThemselves) {
  test::run_ranks(2, [](const comm::Group& ep) {
    const RoutingCase c{.name = "", .top_k = 3, .tokens = [](int) { return 30; }};
    const auto routing = testing::make_case_routing(c, ep.rank(), 0);
    const auto dispatcher = make(DispatchType::kShared, ep);
    const auto plan = dispatcher->plan(routing);
    const Tensor x = kernels::random_tensor({30, c.width}, at::kFloat, ep.rank());
    const Tensor gates = kernels::random_tensor({routing.pairs()}, at::kFloat, 5);
    auto sent = dispatcher->start_send(plan, x, gates);
    const auto arrived = dispatcher->finish_send(plan, sent);
    const Tensor before = arrived.scalars.clone();
    auto back = dispatcher->start_give_back(plan, arrived.rows, arrived.scalars * 2.0);
    const auto home = dispatcher->finish_give_back(plan, back);
    kernels::expect_same_bits(home.rows, (x + x) + x, "three copies");
    kernels::expect_same_bits(home.scalars, gates * 2.0, "scalars");
    kernels::expect_same_bits(arrived.scalars, before, "what arrived stays");
  });
}

TEST(DispatcherRanksShared, KeepsRowsForAsLongAsTheyAreHeld) {
  test::run_ranks(2, [](const comm::Group& ep) {
    const RoutingCase c{.name = "", .tokens = [](int) { return 50; }};
    const auto dispatcher = make(DispatchType::kShared, ep);
    std::vector<Tensor> held, copies;
    for (int round = 0; round < 40; ++round) {
      const auto routing = testing::make_case_routing(c, ep.rank(), round);
      const auto plan = dispatcher->plan(routing);
      auto sent = dispatcher->start_send(plan, kernels::random_tensor({50, c.width}, at::kFloat, round), {});
      const Tensor rows = dispatcher->finish_send(plan, sent).rows;
      if (round % 3 == 0) held.push_back(rows), copies.push_back(rows.clone());
    }
    for (size_t i = 0; i < held.size(); ++i) kernels::expect_same_bits(held[i], copies[i], "held rows");
  });
}

// Results that lie in the window are not copied.
TEST(DispatcherRanksShared, SoonHasRoomForResults) {
  test::run_ranks(2, [](const comm::Group& ep) {
    const RoutingCase c{.name = "", .width = 4096, .tokens = [](int) { return 200; }};
    const auto dispatcher = make(DispatchType::kShared, ep);
    const auto routing = testing::make_case_routing(c, ep.rank(), 0);
    std::set<const void*> places;
    for (int round = 0; round < 12; ++round) {
      const auto plan = dispatcher->plan(routing);
      auto sent = dispatcher->start_send(plan, at::empty({200, c.width}, at::kFloat), {});
      auto arrived = dispatcher->finish_send(plan, sent);
      sent = {};
      const Tensor results = plan.empty_results(arrived.rows);
      if (round >= 2) places.insert(results.data_ptr()), places.insert(arrived.rows.data_ptr());
      arrived = {};
      auto back = dispatcher->start_give_back(plan, results, {});
      dispatcher->finish_give_back(plan, back);
    }
    EXPECT_EQ(places.size(), 2u) << "the same two blocks over and over";
  });
}

TEST(DispatcherRanksShared, RefusesRanksOfSeveralHosts) {
  test::run_ranks_on({0, 1, 1}, [](const comm::Group& ep) {
    try {
      make(DispatchType::kShared, ep);
      ADD_FAILURE() << "no exception";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("on 2 different hosts; use auto, alltoall or hierarchical"));
    }
  });
}

}  // namespace
}  // namespace conclave
