// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "app/bench_dispatch.h"
#include "app/bench_numbers.h"

namespace conclave::app {
namespace {

std::vector<double> totals(const DispatchTimes& times) {
  std::vector<double> sums;
  for (size_t i = 0; i < times.dispatch.size(); ++i) sums.push_back(times.dispatch[i] + times.combine[i]);
  return sums;
}

double best_of(const DispatchTimes& times) {
  const auto sums = totals(times);
  return *std::min_element(sums.begin(), sums.end());
}

struct Ratio {
  double median, best;
};

Ratio ratio_of(const DispatchTimes& naive, const DispatchTimes& ours) {
  return {median(totals(naive)) / median(totals(ours)), best_of(naive) / best_of(ours)};
}

std::map<std::string, Ratio> geometric_means(const DispatchBench& bench) {
  std::map<std::string, Ratio> means;
  for (const auto& result : bench.results) {
    for (const auto& [name, times] : result.dispatchers) {
      const Ratio ratio = ratio_of(result.naive, times);
      auto [mean, fresh] = means.try_emplace(name, Ratio{1, 1});
      mean->second.median *= ratio.median;
      mean->second.best *= ratio.best;
    }
  }
  const double root = 1.0 / static_cast<double>(bench.results.size());
  for (auto& [name, mean] : means) mean = {std::pow(mean.median, root), std::pow(mean.best, root)};
  return means;
}

}  // namespace

std::string dispatch_report(const DispatchBench& bench) {
  std::string text = fmt::format(
      "{} ranks x {} thread{}, machine load {:.1f} at the start; milliseconds, median of {} repetitions, slowest "
      "rank\n{:>7} {:>6} {:>3}  {:<13} {:>9} {:>9} {:>9}  naive / this (best)\n",
      bench.ranks, bench.threads, bench.threads == 1 ? "" : "s", bench.load,
      bench.results[0].dispatchers.begin()->second.dispatch.size(), "tokens", "width", "k", "", "dispatch", "combine",
      "both");
  for (const auto& result : bench.results) {
    const auto line = [&](const std::string& name, const DispatchTimes& times, bool is_ours) {
      const Ratio ratio = ratio_of(result.naive, times);
      text += fmt::format("{:>7} {:>6} {:>3}  {:<13} {:>9.3f} {:>9.3f} {:>9.3f}", result.shape.tokens,
                          result.shape.width, result.shape.top_k, name, 1e3 * median(times.dispatch),
                          1e3 * median(times.combine), 1e3 * median(totals(times)));
      text += is_ours ? fmt::format("  {:>6.2f} ({:.2f})\n", ratio.median, ratio.best) : "\n";
    };
    line("naive", result.naive, false);
    for (const auto& [name, times] : result.dispatchers) line(name, times, true);
  }
  for (const auto& [name, mean] : geometric_means(bench))
    text += fmt::format("{}: {:.2f} times as fast as naive, geometric mean of {} shapes (by best times {:.2f})\n", name,
                        mean.median, bench.results.size(), mean.best);
  for (const auto& why : bench.left_out) text += fmt::format("left out: {}\n", why);
  return text;
}

std::string dispatch_json(const DispatchBench& bench) {
  nlohmann::json json{{"ranks", bench.ranks}, {"threads", bench.threads}, {"load", bench.load}};
  const auto seconds = [](const DispatchTimes& times) {
    return nlohmann::json{{"dispatch", times.dispatch}, {"combine", times.combine}};
  };
  for (const auto& result : bench.results) {
    nlohmann::json one{{"tokens", result.shape.tokens},
                       {"width", result.shape.width},
                       {"top_k", result.shape.top_k},
                       {"seconds", {{"naive", seconds(result.naive)}}}};
    for (const auto& [name, times] : result.dispatchers) one["seconds"][name] = seconds(times);
    json["cases"].push_back(std::move(one));
  }
  for (const auto& [name, mean] : geometric_means(bench))
    json["naive_over"][name] = {{"median", mean.median}, {"best", mean.best}};
  return json.dump(2);
}

}  // namespace conclave::app
