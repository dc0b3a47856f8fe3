// SPDX-License-Identifier: Apache-2.0
#include "moe/device_exchange.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <limits>
#include <numeric>
#include <span>

#include "moe/device_rows.h"

namespace conclave::moe {
namespace {

std::span<std::byte> bytes_of(const Tensor& tensor) {
  check(tensor.is_contiguous(), "what travels lies in one piece");
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

// Sums of the parts of each rank.
std::vector<int64_t> by_rank(std::span<const int32_t> counts, int64_t ranks) {
  std::vector<int64_t> sums;
  const auto part = std::ssize(counts) / ranks;
  for (int64_t r = 0; r < ranks; ++r) {
    const auto own = counts.subspan(r * part, part);
    for (const int32_t count : own)
      if (count < 0) throw CommError("rank {} of the experts' group tells of {} rows", r, count);
    sums.push_back(std::accumulate(own.begin(), own.end(), int64_t{0}));
  }
  return sums;
}

int64_t sum(const std::vector<int64_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

// Where the rows of each local expert end when they are sorted.
Tensor ends_on_host(std::span<const int32_t> counts_SE, int64_t sources) {
  const auto E = std::ssize(counts_SE) / sources;
  Tensor ends_E = at::empty({E}, at::kInt);
  int32_t end = 0;
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t s = 0; s < sources; ++s) end += counts_SE[s * E + e];
    ends_E.mutable_data_ptr<int32_t>()[e] = end;
  }
  return ends_E;
}

}  // namespace

DeviceExchange::Counts DeviceExchange::start_counts(const Tensor& counts_E) const {
  const int64_t local = counts_E.numel() / ep_.size();
  check(local * ep_.size() == counts_E.numel() && counts_E.scalar_type() == at::kInt && counts_E.is_contiguous(),
        "experts divide over the ranks, and their counts are int32");
  Counts counts{counts_E, at::empty_like(counts_E), {}};
  const std::vector<int64_t> each(ep_.size(), local * static_cast<int64_t>(sizeof(int32_t)));
  counts.work =
      ep_.start_all_to_all_v(std::span<const std::byte>(bytes_of(counts.sent_E)), std::span<const int64_t>(each),
                             bytes_of(counts.received_E), std::span<const int64_t>(each));
  return counts;
}

DevicePlan DeviceExchange::plan(Counts& counts, kernels::HostReads& reads) const {
  counts.work.finish();
  const Tensor host = reads.read(at::cat({counts.sent_E, counts.received_E}));
  ep_.poll();  // where a peer was lost, the read ended with numbers that nobody sent
  const auto numbers = std::span<const int32_t>(elements<int32_t>(host));
  const auto sent = numbers.first(counts.sent_E.numel()), received = numbers.subspan(sent.size());
  DevicePlan plan;
  plan.sent_S = by_rank(sent, ep_.size());
  plan.received_S = by_rank(received, ep_.size());
  plan.rows_N = sum(plan.sent_S);
  plan.rows_R = sum(plan.received_S);
  check(plan.rows_R <= std::numeric_limits<int32_t>::max(), "rows are counted in 31 bits");
  plan.order = kernels::arrival_order(counts.received_E.view({ep_.size(), -1}), plan.rows_R);
  plan.host_ends_E = ends_on_host(received, ep_.size());
  return plan;
}

DeviceTransfer DeviceExchange::start(const Tensor& rows, const Sizes& sizes) const {
  auto shape = rows.sizes().vec();
  shape[0] = sizes.arriving;
  const int64_t item = (rows.dim() == 2 ? rows.size(1) : 1) * static_cast<int64_t>(rows.element_size());
  DeviceTransfer transfer{rows, at::empty(shape, rows.options()), {}};
  std::vector<int64_t> out_S = sizes.out_S, in_S = sizes.in_S;
  for (auto* bytes_S : {&out_S, &in_S})
    for (int64_t& bytes : *bytes_S) bytes *= item;
  transfer.work =
      ep_.start_all_to_all_v(std::span<const std::byte>(bytes_of(transfer.sent)), std::span<const int64_t>(out_S),
                             bytes_of(transfer.arrived), std::span<const int64_t>(in_S));
  return transfer;
}

DeviceTransfer DeviceExchange::start_out(const DevicePlan& plan, const Tensor& rows_N) const {
  return start(rows_N.narrow(0, 0, plan.rows_N), {plan.sent_S, plan.received_S, plan.rows_R});
}

Tensor DeviceExchange::finish_out(const DevicePlan& plan, DeviceTransfer& transfer) const {
  transfer.work.finish();
  return gathered(transfer.arrived, plan.order.arrived_R);
}

DeviceTransfer DeviceExchange::start_home(const DevicePlan& plan, const Tensor& rows_R) const {
  return start(gathered(rows_R, plan.order.sorted_R), {plan.received_S, plan.sent_S, plan.rows_N});
}

Tensor DeviceExchange::finish_home(DeviceTransfer& transfer) const {
  transfer.work.finish();
  return transfer.arrived;
}

}  // namespace conclave::moe
