// SPDX-License-Identifier: Apache-2.0
#include "comm/failure.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "core/error.h"

namespace conclave::comm {
namespace {

bool is_lost_peer(const Failure& failure) { return failure.code == static_cast<int>(ExitCode::kPeerLost); }
bool is_cause(const Failure& failure) { return failure.code != 0 && !is_lost_peer(failure); }
bool is_same(const Failure& a, const Failure& b) { return a.code == b.code && a.message == b.message; }

}  // namespace

std::string name_ranks(const std::vector<int>& ranks, const std::vector<std::string>& hosts) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t first = 0; first < ranks.size();) {
    size_t last = first;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1 &&
           hosts[ranks[last + 1]] == hosts[ranks[first]])
      ++last;
    if (first > 0) text += ", ";
    text += first == last ? fmt::format("{}", ranks[first]) : fmt::format("{}-{}", ranks[first], ranks[last]);
    text += fmt::format(" on {}", hosts[ranks[first]]);
    first = last + 1;
  }
  return text;
}

Failure failure_of(std::exception_ptr error) {
  const int bug = static_cast<int>(ExitCode::kBug);
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return {static_cast<int>(e.code()), e.what()};
  } catch (const std::bad_alloc&) {
    return {bug, "out of memory: use a smaller micro-batch, more ranks, or a machine with more memory"};
  } catch (const std::exception& e) {
    return {bug, fmt::format("internal error: {}", e.what())};
  } catch (...) {
    return {bug, "internal error: an exception of unknown type"};
  }
}

const Failure& first_cause(const std::vector<Failure>& by_rank) {
  auto found = std::find_if(by_rank.begin(), by_rank.end(), is_cause);
  if (found == by_rank.end()) found = std::find_if(by_rank.begin(), by_rank.end(), is_lost_peer);
  check(found != by_rank.end(), "a failure is described when there is one");
  return *found;
}

std::string describe_failures(const std::vector<Failure>& by_rank, const std::vector<std::string>& hosts) {
  const bool has_cause = std::any_of(by_rank.begin(), by_rank.end(), is_cause);
  std::vector<std::vector<int>> alike;
  for (int r = 0; r < static_cast<int>(by_rank.size()); ++r) {
    if (has_cause ? !is_cause(by_rank[r]) : !is_lost_peer(by_rank[r])) continue;
    const auto same = std::find_if(alike.begin(), alike.end(), [&](const std::vector<int>& ranks) {
      return is_same(by_rank[ranks.front()], by_rank[r]);
    });
    if (same == alike.end())
      alike.push_back({r});
    else
      same->push_back(r);
  }
  if (alike.size() == 1 && alike.front().size() == by_rank.size()) return by_rank.front().message + "\n";
  std::string text;
  for (const std::vector<int>& ranks : alike)
    text += fmt::format("{}: {}\n", name_ranks(ranks, hosts), by_rank[ranks.front()].message);
  return text;
}

}  // namespace conclave::comm
