// SPDX-License-Identifier: Apache-2.0
// Who forwards what in the hierarchical dispatcher: hosts, partners, and the index lists of one routing. Makes lists
// and exchanges them; moves no rows.
#pragma once

#include "moe/dispatcher.h"

namespace conclave::moe {

// The hosts of a group. A rank's partner on a host takes the tokens that the rank has for that host: its own place
// among the ranks of its host, modulo theirs. Its partner on its own host is the rank itself.
class HostMap {
 public:
  // `hosts` has for each rank the lowest rank on the same host.
  HostMap(const std::vector<int>& hosts, int rank);

  int hosts() const { return static_cast<int>(members_.size()); }
  int host() const { return host_of_[rank_]; }
  const std::vector<int>& members(int host) const { return members_[host]; }  // ranks, ascending
  int partner(int rank, int host) const;
  std::vector<int> served_by(int rank) const;  // ranks whose partner on `rank`'s host it is, ascending

 private:
  int rank_;
  std::vector<int> host_of_, place_;
  std::vector<std::vector<int>> members_;
};

// A sum over rows for each token.
struct TokenSums {
  std::vector<int32_t> offsets, rows;
};

// The three roles of a rank. Every list of one side is in the order in which the other side has it.
struct HierarchicalPlan : DispatchDetails {
  // Source: tokens for each partner, by partner rank; each host's token once.
  std::vector<int32_t> tokens_U;
  std::vector<int32_t> pairs_P;                  // this rank's pairs, by partner rank
  std::vector<int64_t> sent_tokens, sent_pairs;  // counts for each rank of ep
  TokenSums home;                                // of this rank's tokens, over tokens_U
  std::vector<int32_t> place_N;                  // of each pair in pairs_P
  // Forwarder: what arrived from those it serves, one row for each pair, by owner, source, expert.
  std::vector<int64_t> served_tokens, served_pairs;  // counts from each rank of ep
  std::vector<int32_t> forward_rows, forward_pairs;  // index into what arrived
  std::vector<int64_t> forwarded;                    // pairs for each rank of the host
  TokenSums partial;                                 // of the tokens that arrived, over forward_rows
  std::vector<int32_t> forward_place;                // inverse of forward_pairs
  // Owner: what the forwarders of its host sent, one after the other.
  std::vector<int64_t> received;     // pairs from each rank of the host
  std::vector<int32_t> row_of_pair;  // of R, for each that arrived
};

// Collective over `ep` and the group `host` of its ranks on this host.
DispatchPlan plan_hierarchical(const comm::Group& ep, const comm::Group& host, const HostMap& map,
                               const Routing& routing);

}  // namespace conclave::moe
