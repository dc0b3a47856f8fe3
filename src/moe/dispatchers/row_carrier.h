// SPDX-License-Identifier: Apache-2.0
// Carries rows between the ranks of a group: as they are within a host, in the payload's format between hosts. What a
// rank gets from another host are rounded numbers in the rows' own type; sums run on these. It knows no routing.
#pragma once

#include <vector>

#include "comm/group.h"
#include "core/tensor.h"
#include "moe/moe_config.h"

namespace conclave::moe {

// How many rows go to and come from each rank of a group.
struct Lane {
  std::vector<int64_t> send, recv;
};

class RowCarrier {
 public:
  // Every row as it is: for scalars, and for ranks of one host.
  explicit RowCarrier(const comm::Group& group) : group_(group) {}
  // `hosts` has for each rank the lowest one on its host. Collective.
  RowCarrier(const comm::Group& group, const std::vector<int>& hosts, DispatchPayload payload);

  const comm::Group& group() const { return group_; }
  // Begins to carry rows [sum of lane.send, D], rank after rank. Returns those that come, [sum of lane.recv, D], which
  // are there when the work that was added to `works` has been finished. Collective.
  Tensor start(const Tensor& rows, const Lane& lane, std::vector<comm::Work>& works) const;
  // Begins to bring the rows of all ranks to each, counts[r] of rank r, rank after rank, under the same conditions;
  // `rows` stay as they are until then. A vector is rows of one number. Collective.
  Tensor start_gather(const Tensor& rows, const std::vector<int64_t>& counts, std::vector<comm::Work>& works) const;
  // The same, over when this returns.
  Tensor gather(const Tensor& rows, const std::vector<int64_t>& counts) const;

 private:
  bool near(int rank) const { return hosts_[rank] == hosts_[group_.rank()]; }
  Tensor start_rounded(const Tensor& rows, const Lane& lane, std::vector<comm::Work>& works) const;
  Tensor start_gather_rounded(const Tensor& rows, const std::vector<int64_t>& counts,
                              std::vector<comm::Work>& works) const;

  comm::Group group_;
  // Not `same` only where rows are rounded, that is with several hosts.
  DispatchPayload payload_ = DispatchPayload::kSame;
  std::vector<int> hosts_;
  comm::Group host_;  // the ranks of this one's host, in the order of the group
};

}  // namespace conclave::moe
