// SPDX-License-Identifier: Apache-2.0
// Rows between the ranks of a group whose experts they are for, on a device's tensors: rank r of S owns experts r·E/S
// ... (r+1)·E/S − 1. Rows of this rank lie sorted by expert, so what goes to one rank is one piece:
//
//   out:   rows sorted by expert → the owners → rows sorted by (local expert, source)
//   home:  the way back along the same plan
//
// Each is the other's backward. A plan costs one exchange of counts and one read of the host (transports want sizes as
// numbers); rows cost none. N rows sent, R rows received; either may be none.
#pragma once

#include <vector>

#include "comm/group.h"
#include "kernels/arrivals.h"
#include "kernels/host_reads.h"

namespace conclave::moe {

// Made by forward, saved for backward.
struct DevicePlan {
  std::vector<int64_t> sent_S, received_S;  // rows for and from each rank
  int64_t rows_N = 0, rows_R = 0;           // their sums
  kernels::ArrivalOrder order;
  Tensor host_ends_E;  // order.ends on the host
};

// A tensor's rows under way. It holds what is sent until then.
struct DeviceTransfer {
  Tensor sent, arrived;
  comm::Work work;
};

class DeviceExchange {
 public:
  explicit DeviceExchange(const comm::Group& ep) : ep_(ep) {}
  const comm::Group& group() const { return ep_; }

  // An exchange of counts under way. Collective, as are the others: every rank calls all of them in one order.
  struct Counts {
    Tensor sent_E, received_E;  // int32: rows for each expert; [source, local expert] from each rank
    comm::Work work;
  };
  // `counts_E`, int32: how many rows this rank has for each expert.
  Counts start_counts(const Tensor& counts_E) const;
  // Looks at the counts, once. Throws CommError where the exchange was broken off.
  DevicePlan plan(Counts& counts, kernels::HostReads& reads) const;

  // Rows [>= N, D], or one number for each of them [>= N]; what comes after the first N stays here.
  DeviceTransfer start_out(const DevicePlan& plan, const Tensor& rows_N) const;
  Tensor finish_out(const DevicePlan& plan, DeviceTransfer& transfer) const;
  // R rows or numbers, and N that come back, sorted by expert as they went.
  DeviceTransfer start_home(const DevicePlan& plan, const Tensor& rows_R) const;
  Tensor finish_home(DeviceTransfer& transfer) const;

 private:
  struct Sizes {
    const std::vector<int64_t>&out_S, &in_S;
    int64_t arriving;
  };
  DeviceTransfer start(const Tensor& rows, const Sizes& sizes) const;

  comm::Group ep_;
};

}  // namespace conclave::moe
