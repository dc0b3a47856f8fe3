// SPDX-License-Identifier: Apache-2.0
// Dispatch and combine as they are usually written: pack by expert, MPI_Alltoallv, regroup by expert; and the same way
// back with a sum. What `conclave bench dispatch` compares with, used for nothing else. Its copies and sums are the
// kernels that the dispatchers use too.
#pragma once

#include <vector>

#include "comm/group.h"
#include "moe/routing.h"

namespace conclave::app {

class NaiveExchange {
 public:
  // `ep` is all processes of the job.
  explicit NaiveExchange(const comm::Group& ep) : ep_(ep) {}

  // Rows for this rank's experts, by expert, then by source. Collective.
  Tensor dispatch(const moe::Routing& routing, const Tensor& x_TD);
  // y[T, D], the sum of each token's rows. Collective; of the last dispatch.
  Tensor combine(const moe::Routing& routing, const Tensor& rows_RD);

 private:
  Tensor exchange(const Tensor& rows, const std::vector<int64_t>& send, const std::vector<int64_t>& recv) const;

  comm::Group ep_;
  std::vector<int64_t> send_rows_, recv_rows_;        // for each rank
  std::vector<int32_t> arrived_of_R_, grouped_of_R_;  // by expert ← as it arrived, and the inverse
};

}  // namespace conclave::app
