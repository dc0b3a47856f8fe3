// SPDX-License-Identifier: Apache-2.0
#include "app/naive_exchange.h"

#include <ATen/ops/empty.h>

#include <numeric>

#include "comm/mpi_baseline.h"
#include "kernels/rows.h"

namespace conclave::app {

Tensor NaiveExchange::dispatch(const moe::Routing& routing, const Tensor& x_TD) {
  const int64_t ranks = ep_.size(), E = routing.experts(), local = E / ranks;
  std::vector<int32_t> send(E), recv(E);
  for (int64_t e = 0; e < E; ++e) send[e] = routing.offsets_E1[e + 1] - routing.offsets_E1[e];
  const std::vector<int64_t> sizes(ranks, local * static_cast<int64_t>(sizeof(int32_t)));
  comm::mpi_world_all_to_all_v(std::as_bytes(std::span(send)), sizes, std::as_writable_bytes(std::span(recv)), sizes);
  send_rows_.assign(ranks, 0), recv_rows_.assign(ranks, 0);
  for (int64_t e = 0; e < E; ++e) send_rows_[e / local] += send[e], recv_rows_[e / local] += recv[e];
  // What arrives is sorted by (source, expert).
  std::vector<int32_t> first(E + 1, 0);
  std::partial_sum(recv.begin(), recv.end(), first.begin() + 1);
  arrived_of_R_.clear();
  for (int64_t e = 0; e < local; ++e)
    for (int64_t r = 0; r < ranks; ++r)
      for (int32_t i = first[r * local + e]; i < first[r * local + e + 1]; ++i) arrived_of_R_.push_back(i);
  grouped_of_R_.resize(arrived_of_R_.size());
  for (size_t i = 0; i < arrived_of_R_.size(); ++i) grouped_of_R_[arrived_of_R_[i]] = static_cast<int32_t>(i);

  Tensor packed = at::empty({routing.pairs(), x_TD.size(1)}, x_TD.options());
  kernels::gather_rows(x_TD, routing.rows_N, packed);
  const Tensor arrived = exchange(packed, send_rows_, recv_rows_);
  Tensor grouped = at::empty(arrived.sizes(), arrived.options());
  kernels::gather_rows(arrived, arrived_of_R_, grouped);
  return grouped;
}

Tensor NaiveExchange::combine(const moe::Routing& routing, const Tensor& rows_RD) {
  Tensor packed = at::empty(rows_RD.sizes(), rows_RD.options());
  kernels::gather_rows(rows_RD, grouped_of_R_, packed);
  const Tensor arrived = exchange(packed, recv_rows_, send_rows_);
  Tensor y = at::empty({routing.tokens, rows_RD.size(1)}, rows_RD.options());
  kernels::sum_rows(arrived, routing.token_offsets_T1, routing.token_rows_N, false, y);
  return y;
}

Tensor NaiveExchange::exchange(const Tensor& rows, const std::vector<int64_t>& send,
                               const std::vector<int64_t>& recv) const {
  const int64_t width = rows.size(1), row_bytes = width * static_cast<int64_t>(rows.element_size());
  const auto scaled = [&](std::vector<int64_t> counts) {
    for (auto& count : counts) count *= row_bytes;
    return counts;
  };
  Tensor arrived = at::empty({std::accumulate(recv.begin(), recv.end(), int64_t{0}), width}, rows.options());
  comm::mpi_world_all_to_all_v(std::as_bytes(elements<float>(rows)), scaled(send),
                               std::as_writable_bytes(elements<float>(arrived)), scaled(recv));
  return arrived;
}

}  // namespace conclave::app
