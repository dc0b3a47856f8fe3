// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_links.h"

#include <fmt/format.h>

#include <algorithm>

#include "app/bench_numbers.h"
#include "app/doctor_timing.h"

namespace conclave::app {
namespace {

// Figures beyond these shares of the others' median are not noise.
constexpr double kSlow = 0.5;
constexpr double kLate = 4;
constexpr double kLateAtLeast = 100e-6;                      // seconds: below, a scheduler's whim
constexpr int64_t kSmallest = 32 << 10, kLargest = 2 << 20;  // bytes

LinkFigures measure_one(const comm::Group& two, double seconds) {
  LinkFigures link;
  std::vector<int32_t> ping(1);
  const Timing there_and_back = time_exchange(two, seconds / 3, [&] {
    two.broadcast(std::span<int32_t>(ping), 0);
    two.broadcast(std::span<int32_t>(ping), 1);
  });
  link.latency = there_and_back.best / 2;
  // Longer until one message takes a while, and no longer: a slow link should not take minutes. Short ones say little:
  // they fit into buffers on the way.
  for (int64_t bytes = kSmallest; bytes <= kLargest; bytes *= 4) {
    std::vector<std::byte> message(bytes);
    double slower = 0;
    for (const int sender : {0, 1}) {
      const auto send = [&] { two.broadcast(std::span<std::byte>(message), sender); };
      slower = std::max(slower, time_exchange(two, seconds / 5, send).best);
    }
    link.bandwidth = static_cast<double>(bytes) / slower;
    if (slower > seconds / 5) break;
  }
  return link;
}

// Best figures that each member has with anybody.
struct Best {
  double latency = 1e9;
  double bandwidth = 0;
};
std::vector<Best> best_of(const std::vector<LinkFigures>& links, size_t members) {
  std::vector<Best> best(members);
  for (const LinkFigures& link : links)
    for (const int end : {link.a, link.b}) {
      best[end].latency = std::min(best[end].latency, link.latency);
      best[end].bandwidth = std::max(best[end].bandwidth, link.bandwidth);
    }
  return best;
}

bool is_slow(double bandwidth, double usual) { return bandwidth < kSlow * usual; }
bool is_late(double latency, double usual) { return latency > kLate * usual && latency > usual + kLateAtLeast; }

}  // namespace

std::vector<std::vector<int>> meetings(int members) {
  const int seats = members + members % 2;  // the last seat may be empty
  std::vector<std::vector<int>> rounds;
  for (int round = 0; round < seats - 1; ++round) {
    std::vector<int> partner(members);
    for (int m = 0; m < members; ++m) {
      // The circle method: all but the last seat turn.
      int other = m == seats - 1 ? -1 : (2 * round - m + 2 * (seats - 1)) % (seats - 1);
      if (m == seats - 1) other = round;
      if (m == other && m != seats - 1) other = seats - 1;
      partner[m] = other < members ? other : m;
    }
    rounds.push_back(std::move(partner));
  }
  return rounds;
}

std::vector<LinkFigures> measure_links(const comm::Group& group, double seconds) {
  std::vector<LinkFigures> links;
  for (const auto& partner : meetings(group.size())) {
    const int me = group.rank(), other = partner[me];
    const comm::Group two = group.split(std::min(me, other), me);
    LinkFigures own;
    if (two.size() == 2) own = measure_one(two, seconds);
    own.a = std::min(me, other);
    own.b = std::max(me, other);
    const auto all = group.all_gather_value(own);
    for (int m = 0; m < group.size(); ++m)
      if (all[m].a == m && all[m].b != m) links.push_back(all[m]);
  }
  std::sort(links.begin(), links.end(),
            [](const LinkFigures& x, const LinkFigures& y) { return std::pair(x.a, x.b) < std::pair(y.a, y.b); });
  return links;
}

std::vector<std::string> odd_links(const std::vector<LinkFigures>& links, const std::vector<std::string>& names) {
  std::vector<std::string> odd;
  if (names.size() < 3) return odd;
  const std::vector<Best> best = best_of(links, names.size());
  std::vector<double> bandwidths, latencies;
  for (const Best& one : best) {
    bandwidths.push_back(one.bandwidth);
    latencies.push_back(one.latency);
  }
  const double usual = median(bandwidths), usual_latency = median(latencies);
  std::vector<bool> named(names.size());
  for (size_t m = 0; m < names.size(); ++m) {
    const bool slow = is_slow(best[m].bandwidth, usual), late = is_late(best[m].latency, usual_latency);
    named[m] = slow || late;
    if (slow)
      odd.push_back(fmt::format("{} is slow to all others: at best {:.1f} MB/s, the others reach {:.1f}", names[m],
                                best[m].bandwidth / 1e6, usual / 1e6));
    else if (late)
      odd.push_back(fmt::format("{} is late to all others: at best {:.0f} us, the others {:.0f}", names[m],
                                best[m].latency * 1e6, usual_latency * 1e6));
  }
  for (const LinkFigures& link : links)
    if (!named[link.a] && !named[link.b] && is_slow(link.bandwidth, usual))
      odd.push_back(fmt::format("between {} and {} pass only {:.1f} MB/s, elsewhere {:.1f}", names[link.a],
                                names[link.b], link.bandwidth / 1e6, usual / 1e6));
  return odd;
}

nlohmann::json to_json(const LinkFigures& link, const std::vector<std::string>& names) {
  return {{"a", names[link.a]},
          {"b", names[link.b]},
          {"latency_seconds", link.latency},
          {"bytes_per_second", link.bandwidth}};
}

}  // namespace conclave::app
