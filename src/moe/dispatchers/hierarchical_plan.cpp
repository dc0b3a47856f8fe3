// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatchers/hierarchical_plan.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace conclave::moe {
namespace {

using Counts = std::vector<int64_t>;

int64_t sum_of(std::span<const int64_t> counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

std::vector<int32_t> exchanged(const comm::Group& group, const std::vector<int32_t>& send, const Counts& send_counts,
                               const Counts& recv_counts) {
  std::vector<int32_t> recv(sum_of(recv_counts));
  group.all_to_all_v(std::span<const int32_t>(send), std::span<const int64_t>(send_counts), std::span<int32_t>(recv),
                     std::span<const int64_t>(recv_counts));
  return recv;
}

std::vector<int32_t> inverse_of(const std::vector<int32_t>& order) {
  std::vector<int32_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int32_t>(i);
  return inverse;
}

// For each of `tokens` tokens the places in `token_of` that name it, ascending.
TokenSums sums_by_token(const std::vector<int32_t>& token_of, int64_t tokens) {
  TokenSums sums;
  sums.offsets.assign(tokens + 1, 0);
  for (const int32_t token : token_of) ++sums.offsets[token + 1];
  std::partial_sum(sums.offsets.begin(), sums.offsets.end(), sums.offsets.begin());
  std::vector<int32_t> next(sums.offsets.begin(), sums.offsets.end() - 1);
  sums.rows.resize(token_of.size());
  for (size_t i = 0; i < token_of.size(); ++i) sums.rows[next[token_of[i]]++] = static_cast<int32_t>(i);
  return sums;
}

// Makes the lists of one plan, role by role.
class Planner {
 public:
  Planner(const comm::Group& ep, const comm::Group& host, const HostMap& map, const Routing& routing)
      : ep_(ep), host_(host), map_(map), routing_(routing), local_(routing.experts() / ep.size()) {
    check(local_ * ep.size() == routing.experts(), "experts must divide over the ep group");
    plan_.routing = &routing;
  }

  DispatchPlan run() {
    as_source();
    as_forwarder();
    as_owner();
    plan_.details = std::make_shared<HierarchicalPlan>(std::move(lists_));
    return std::move(plan_);
  }

 private:
  int64_t experts_on(int host) const { return local_ * std::ssize(map_.members(host)); }

  // What goes to the partner on each host: distinct tokens, and for each pair, by expert, which of these it is.
  void as_source() {
    lists_.sent_tokens.assign(ep_.size(), 0);
    lists_.sent_pairs.assign(ep_.size(), 0);
    header_counts_.assign(ep_.size(), 0);
    std::vector<int> order(map_.hosts());  // by partner rank
    std::iota(order.begin(), order.end(), 0);
    const auto partner = [&](int host) { return map_.partner(ep_.rank(), host); };
    std::sort(order.begin(), order.end(), [&](int a, int b) { return partner(a) < partner(b); });
    for (const int host : order) {
      const int to = partner(host);
      const auto [tokens, pairs] = append_host(host);
      lists_.sent_tokens[to] = tokens;
      lists_.sent_pairs[to] = pairs;
      header_counts_[to] = 1 + experts_on(host);
    }
    lists_.home = sums_by_token(lists_.tokens_U, routing_.tokens);
    lists_.place_N = inverse_of(lists_.pairs_P);
  }

  std::pair<int64_t, int64_t> append_host(int host) {
    std::vector<int32_t> slot_T(routing_.tokens, -1);
    const size_t tokens_before = lists_.tokens_U.size(), pairs_before = lists_.pairs_P.size();
    const size_t header = headers_.size();
    headers_.push_back(0);
    for (const int rank : map_.members(host)) {
      for (int64_t e = rank * local_; e < (rank + 1) * local_; ++e) {
        headers_.push_back(routing_.offsets_E1[e + 1] - routing_.offsets_E1[e]);
        for (int32_t n = routing_.offsets_E1[e]; n < routing_.offsets_E1[e + 1]; ++n) {
          int32_t& slot = slot_T[routing_.rows_N[n]];
          if (slot < 0) {
            slot = static_cast<int32_t>(lists_.tokens_U.size() - tokens_before);
            lists_.tokens_U.push_back(routing_.rows_N[n]);
          }
          lists_.pairs_P.push_back(n);
          slots_.push_back(slot);
        }
      }
    }
    const auto tokens = static_cast<int64_t>(lists_.tokens_U.size() - tokens_before);
    headers_[header] = static_cast<int32_t>(tokens);
    return {tokens, static_cast<int64_t>(lists_.pairs_P.size() - pairs_before)};
  }

  // Learns what those that this rank serves have for its host, and lists it by owner, source, expert.
  void as_forwarder() {
    const auto served = map_.served_by(ep_.rank());
    const int64_t E = experts_on(map_.host());
    Counts header_sizes(ep_.size(), 0);
    for (const int s : served) header_sizes[s] = 1 + E;
    const auto headers = exchanged(ep_, headers_, header_counts_, header_sizes);
    lists_.served_tokens.assign(ep_.size(), 0);
    lists_.served_pairs.assign(ep_.size(), 0);
    const auto counts_of = [&](size_t i) { return std::span<const int32_t>(headers).subspan(i * (1 + E) + 1, E); };
    for (size_t i = 0; i < served.size(); ++i) {
      lists_.served_tokens[served[i]] = headers[i * (1 + E)];
      lists_.served_pairs[served[i]] = std::accumulate(counts_of(i).begin(), counts_of(i).end(), int64_t{0});
    }
    const auto slots = exchanged(ep_, slots_, lists_.sent_pairs, lists_.served_pairs);
    // Where each source's tokens and next pair begin in what arrives.
    std::vector<int32_t> token_base, next_pair;
    int64_t tokens = 0, pairs = 0;
    for (const int s : served) {
      token_base.push_back(static_cast<int32_t>(tokens));
      next_pair.push_back(static_cast<int32_t>(pairs));
      tokens += lists_.served_tokens[s];
      pairs += lists_.served_pairs[s];
    }
    for (int64_t owner = 0; owner < host_.size(); ++owner) {
      const size_t before = lists_.forward_pairs.size();
      for (size_t i = 0; i < served.size(); ++i) {
        const auto counts = counts_of(i).subspan(owner * local_, local_);
        owner_counts_.insert(owner_counts_.end(), counts.begin(), counts.end());
        const int32_t end = std::accumulate(counts.begin(), counts.end(), next_pair[i]);
        for (int32_t& pair = next_pair[i]; pair < end; ++pair) {
          lists_.forward_pairs.push_back(pair);
          lists_.forward_rows.push_back(token_base[i] + slots[pair]);
        }
      }
      lists_.forwarded.push_back(static_cast<int64_t>(lists_.forward_pairs.size() - before));
    }
    lists_.partial = sums_by_token(lists_.forward_rows, tokens);
    lists_.forward_place = inverse_of(lists_.forward_pairs);
  }

  // Learns what the forwarders of this host will send, and lays it out by source and expert.
  void as_owner() {
    const auto& forwarders = map_.members(map_.host());
    const int64_t own_served = std::ssize(map_.served_by(ep_.rank()));
    Counts send(host_.size(), own_served * local_), recv;
    for (const int f : forwarders) recv.push_back(std::ssize(map_.served_by(f)) * local_);
    const auto counts = exchanged(host_, owner_counts_, send, recv);
    // Of each source: its counts by expert, and where its pairs begin in what arrives.
    std::vector<std::span<const int32_t>> counts_of(ep_.size());
    Counts first(ep_.size(), 0);
    int64_t at = 0, arrived = 0;
    for (const int f : forwarders) {
      const int64_t before = arrived;
      for (const int s : map_.served_by(f)) {
        counts_of[s] = std::span<const int32_t>(counts).subspan(at, local_);
        first[s] = arrived;
        arrived += std::accumulate(counts_of[s].begin(), counts_of[s].end(), int64_t{0});
        at += local_;
      }
      lists_.received.push_back(arrived - before);
    }
    for (int s = 0; s < ep_.size(); ++s) append_segments(counts_of[s], s, first[s], plan_);
    lists_.row_of_pair.resize(arrived);
    for (size_t row = 0; row < plan_.source_of_R.size(); ++row)
      if (plan_.source_of_R[row] >= 0) lists_.row_of_pair[plan_.source_of_R[row]] = static_cast<int32_t>(row);
  }

  const comm::Group& ep_;
  const comm::Group& host_;
  const HostMap& map_;
  const Routing& routing_;
  int64_t local_;  // experts of a rank
  DispatchPlan plan_;
  HierarchicalPlan lists_;
  // From one role to the next.
  std::vector<int32_t> headers_, slots_, owner_counts_;
  Counts header_counts_;
};

}  // namespace

HostMap::HostMap(const std::vector<int>& hosts, int rank) : rank_(rank) {
  std::vector<int> first;
  for (size_t r = 0; r < hosts.size(); ++r) {
    const auto known = std::find(first.begin(), first.end(), hosts[r]);
    const auto host = static_cast<int>(known - first.begin());
    if (known == first.end()) {
      first.push_back(hosts[r]);
      members_.emplace_back();
    }
    host_of_.push_back(host);
    place_.push_back(static_cast<int>(members_[host].size()));
    members_[host].push_back(static_cast<int>(r));
  }
}

int HostMap::partner(int rank, int host) const {
  const auto& members = members_[host];
  return members[place_[rank] % members.size()];
}

std::vector<int> HostMap::served_by(int rank) const {
  std::vector<int> served;
  for (int s = 0; s < static_cast<int>(host_of_.size()); ++s)
    if (partner(s, host_of_[rank]) == rank) served.push_back(s);
  return served;
}

DispatchPlan plan_hierarchical(const comm::Group& ep, const comm::Group& host, const HostMap& map,
                               const Routing& routing) {
  return Planner(ep, host, map, routing).run();
}

}  // namespace conclave::moe
