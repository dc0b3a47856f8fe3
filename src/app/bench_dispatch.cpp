// SPDX-License-Identifier: Apache-2.0
#include "app/bench_dispatch.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "app/naive_exchange.h"
#include "app/rank_resources.h"
#include "config/fields.h"
#include "core/error.h"
#include "core/random.h"
#include "moe/dispatcher.h"

namespace conclave::app {
namespace {

using moe::DispatchType;

constexpr std::array kTypes = {DispatchType::kAllToAll, DispatchType::kShared, DispatchType::kHierarchical,
                               DispatchType::kAllGather};
constexpr double kCloseness = 1e-6;

bool is_bitwise(DispatchType type) { return type == DispatchType::kAllToAll || type == DispatchType::kShared; }

// The k most popular of E experts for each token, by random scores of which some experts have better ones.
moe::Routing random_routing(const DispatchBenchOptions& options, const DispatchCase& shape, int rank) {
  const Random scores(1, Purpose::kSample, rank), favour(2, Purpose::kSample);
  const int64_t E = options.experts;
  std::vector<int32_t> ids, order(E);
  std::vector<double> score(E);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t e = 0; e < E; ++e)
      score[e] = -std::log(-std::log(scores.uniform(t * E + e) + 1e-12)) + options.skew * favour.normal(e);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + shape.top_k, order.end(),
                      [&](int32_t a, int32_t b) { return score[a] > score[b]; });
    ids.insert(ids.end(), order.begin(), order.begin() + shape.top_k);
  }
  const std::vector<uint8_t> keep(ids.size(), 1);
  return moe::make_routing(moe::even_picks(std::move(ids), shape.tokens), keep, {0, shape.tokens}, E);
}

Tensor random_rows(const DispatchCase& shape, int rank) {
  const Random random(3, Purpose::kSample, rank);
  Tensor x = at::empty({shape.tokens, shape.width}, at::kFloat);
  const auto values = elements<float>(x);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(random.uniform(i)) - 0.5f;
  return x;
}

double seconds_of(const comm::Group& group, const std::function<void()>& body) {
  group.barrier();
  const auto start = std::chrono::steady_clock::now();
  body();
  std::vector<double> seconds{std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
  group.all_reduce(std::span<double>(seconds), comm::Reduce::kMax);
  return seconds[0];
}

// One way of exchanging, over and over the same routing. What the experts make of the rows is the rows, copied where
// results belong; that is not timed.
struct Way {
  std::string name;
  std::function<void()> dispatch, compute, combine;
  Tensor y;
};

moe::DispatchConfig config_of(DispatchType type, const DispatchBenchOptions& options) {
  moe::DispatchConfig config;
  config.type = type;
  config.payload = options.payload;
  return config;
}

struct Scene {
  comm::Group ep;
  moe::Routing routing;
  Tensor x;
};

std::unique_ptr<Way> naive_way(const Scene& scene) {
  auto way = std::make_unique<Way>();
  auto exchange = std::make_shared<NaiveExchange>(scene.ep);
  auto rows = std::make_shared<Tensor>(), results = std::make_shared<Tensor>();
  way->name = "naive";
  way->dispatch = [=, &scene] { *rows = exchange->dispatch(scene.routing, scene.x); };
  way->compute = [=] { *results = rows->clone(); };
  way->combine = [=, &scene, to = way.get()] { to->y = exchange->combine(scene.routing, *results); };
  return way;
}

std::unique_ptr<Way> dispatcher_way(const Scene& scene, DispatchType type,
                                    const std::shared_ptr<moe::Dispatcher>& dispatcher) {
  auto way = std::make_unique<Way>();
  auto plan = std::make_shared<moe::DispatchPlan>();
  auto rows = std::make_shared<Tensor>(), results = std::make_shared<Tensor>();
  way->name = config::enum_name(type);
  way->dispatch = [=, &scene] {
    *plan = dispatcher->plan(scene.routing);
    auto transfer = dispatcher->start_send(*plan, scene.x, {});
    *rows = dispatcher->finish_send(*plan, transfer).rows;
  };
  way->compute = [=] {
    *results = plan->empty_results(*rows);
    results->copy_(*rows);
    *rows = Tensor();
  };
  way->combine = [=, to = way.get()] {
    auto transfer = dispatcher->start_give_back(*plan, *results, {});
    to->y = dispatcher->finish_give_back(*plan, transfer).rows;
    *results = Tensor();
  };
  return way;
}

// How far results may be from those of the usual way; 0 = the same bits.
double closeness(DispatchType type, const DispatchBenchOptions& options, int64_t top_k) {
  // Sums of k numbers of at most 1/2, each rounded twice to 8 bits or to 4.
  const auto sum = 0.5 * static_cast<double>(top_k);
  if (options.payload == moe::DispatchPayload::kBf16) return sum * 2.1 / 256;
  if (options.payload == moe::DispatchPayload::kFp8) return sum * 2.1 / 16;
  return is_bitwise(type) ? 0 : kCloseness;
}

void check_equal(const Way& naive, const Way& way, double closeness) {
  const auto expected = elements<float>(naive.y), got = elements<float>(way.y);
  check(expected.size() == got.size(), "a dispatcher gives back as many rows as there are tokens");
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - expected[i]) <= closeness))
      throw BugError("internal error: dispatch {} gives {} where the naive exchange gives {} (element {})", way.name,
                     got[i], expected[i], i);
  }
}

void run_once(const Scene& scene, Way& way, DispatchTimes* times) {
  const double dispatch = seconds_of(scene.ep, way.dispatch);
  way.compute();
  const double combine = seconds_of(scene.ep, way.combine);
  if (times == nullptr) return;
  times->dispatch.push_back(dispatch);
  times->combine.push_back(combine);
}

DispatchBench::Result measure_case(const Scene& scene, const DispatchCase& shape,
                                   const std::vector<DispatchType>& types, const DispatchBenchOptions& options) {
  DispatchBench::Result result{shape, {}, {}};
  const auto naive = naive_way(scene);
  std::vector<std::unique_ptr<Way>> ways;
  for (const DispatchType type : types)
    ways.push_back(dispatcher_way(scene, type, moe::Dispatcher::make(config_of(type, options), scene.ep)));
  for (int warm = 0; warm < 3; ++warm) {
    run_once(scene, *naive, nullptr);
    for (size_t i = 0; i < ways.size(); ++i) {
      run_once(scene, *ways[i], nullptr);
      check_equal(*naive, *ways[i], closeness(types[i], options, shape.top_k));
    }
  }
  for (int64_t i = 0; i < options.repeats; ++i) {
    for (const auto& way : ways) {
      run_once(scene, *naive, &result.naive);
      run_once(scene, *way, &result.dispatchers[way->name]);
    }
  }
  return result;
}

// Those that can be had on these ranks; why not for the others.
std::vector<DispatchType> available(const comm::Group& ep, const DispatchBenchOptions& options,
                                    std::vector<std::string>& left_out) {
  std::vector<DispatchType> types;
  for (const DispatchType type : kTypes) {
    if (!options.only.empty() && options.only != config::enum_name(type)) continue;
    try {
      moe::Dispatcher::make(config_of(type, options), ep);
      types.push_back(type);
    } catch (const ConfigError& error) {
      left_out.emplace_back(error.what());
    }
  }
  if (types.empty())
    throw UsageError("--only {}: there is no such dispatcher here{}{}", options.only, left_out.empty() ? "" : ": ",
                     left_out.empty() ? "" : left_out[0]);
  return types;
}

void check_options(const DispatchBenchOptions& options, int ranks) {
  if (ranks < 2)
    throw UsageError("bench dispatch compares ranks of one ep group: start it on 2 or more, e.g. mpirun -n 2");
  if (options.experts % ranks != 0)
    throw UsageError("--experts {} cannot be split over {} ranks", options.experts, ranks);
  for (const int64_t k : options.top_k)
    if (k > options.experts) throw UsageError("--top-k {} is more than --experts {}", k, options.experts);
}

void for_each_shape(const DispatchBenchOptions& options, const std::function<void(const DispatchCase&)>& body) {
  for (const int64_t tokens : options.tokens)
    for (const int64_t width : options.widths)
      for (const int64_t k : options.top_k) body({tokens, width, k});
}

}  // namespace

DispatchBench bench_dispatch(comm::World& world, const DispatchBenchOptions& options) {
  const comm::Group ep = world.group();
  check_options(options, ep.size());
  DispatchBench bench;
  bench.ranks = ep.size();
  bench.threads = rank_threads(world.cores());
  at::set_num_threads(bench.threads);
  std::array<double, 1> load{};
  if (getloadavg(load.data(), 1) == 1) bench.load = load[0];
  const auto types = available(ep, options, bench.left_out);
  for_each_shape(options, [&](const DispatchCase& shape) {
    const Scene scene{ep, random_routing(options, shape, ep.rank()), random_rows(shape, ep.rank())};
    bench.results.push_back(measure_case(scene, shape, types, options));
  });
  return bench;
}

void run_exchanges(comm::World& world, const DispatchBenchOptions& options, int64_t exchanges) {
  const comm::Group ep = world.group();
  check_options(options, ep.size());
  DispatchType type = DispatchType::kHierarchical;
  std::vector<int> hosts = ep.hosts();
  if (options.only == "per-rank") {
    // As if each rank were a host of its own.
    std::iota(hosts.begin(), hosts.end(), 0);
  } else {
    std::vector<std::string> left_out;
    type = available(ep, options, left_out).at(0);
  }
  const std::shared_ptr<moe::Dispatcher> dispatcher = moe::Dispatcher::make_on(hosts, config_of(type, options), ep);
  for_each_shape(options, [&](const DispatchCase& shape) {
    const Scene scene{ep, random_routing(options, shape, ep.rank()), random_rows(shape, ep.rank())};
    const auto way = dispatcher_way(scene, type, dispatcher);
    for (int64_t i = 0; i < exchanges; ++i) {
      way->dispatch();
      way->compute();
      way->combine();
    }
  });
}

}  // namespace conclave::app
