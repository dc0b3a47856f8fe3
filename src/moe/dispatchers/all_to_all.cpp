// SPDX-License-Identifier: Apache-2.0
// Experts spread over the ranks of a group, rank r owning experts r·E/ep ... (r+1)·E/ep − 1. Pairs are sorted by
// expert, so what goes to a rank is one contiguous piece of the send buffer:
//
//   rank 0 sends  [e0 e0 e1 | e2 e3 e3]      rank 0 receives  [from 0: e0 e0 e1 | from 1: e1]
//   rank 1 sends  [e1       | e2 e2   ]      rank 1 receives  [from 0: e2 e3 e3 | from 1: e2 e2]
#include <ATen/ops/empty.h>

#include <numeric>

#include "core/error.h"
#include "kernels/rows.h"
#include "moe/dispatcher.h"
#include "moe/dispatchers/row_carrier.h"

namespace conclave::moe {
namespace {

class AllToAllDispatcher : public Dispatcher {
 public:
  explicit AllToAllDispatcher(const RowCarrier& rows) : ep_(rows.group()), rows_(rows), scalars_(rows.group()) {}

  DispatchPlan plan(const Routing& routing) const override {
    const int ranks = ep_.size();
    const int64_t local = routing.experts() / ranks;
    check(local * ranks == routing.experts(), "experts must divide over the ep group");
    std::vector<int32_t> send(routing.experts()), recv(routing.experts());
    for (int64_t e = 0; e < routing.experts(); ++e) send[e] = routing.offsets_E1[e + 1] - routing.offsets_E1[e];
    ep_.all_to_all(std::span<const int32_t>(send), std::span<int32_t>(recv));
    DispatchPlan plan;
    plan.routing = &routing;
    int64_t arrived = 0;
    for (int r = 0; r < ranks; ++r) {
      const auto from_r = std::span<const int32_t>(recv).subspan(r * local, local);
      append_segments(from_r, r, arrived, plan);
      plan.send_counts.push_back(std::accumulate(send.begin() + r * local, send.begin() + (r + 1) * local, int64_t{0}));
      plan.recv_counts.push_back(std::accumulate(from_r.begin(), from_r.end(), int64_t{0}));
      arrived += plan.recv_counts.back();
    }
    return plan;
  }

  Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    Transfer transfer;
    transfer.send_rows = at::empty({plan.routing->pairs(), x_TD.size(1)}, x_TD.options());
    kernels::gather_rows(x_TD, plan.routing->rows_N, transfer.send_rows);
    transfer.send_scalars = scalars_N;
    exchange(transfer, {plan.send_counts, plan.recv_counts});
    return transfer;
  }

  Rows finish_send(const DispatchPlan& plan, Transfer& transfer) const override {
    for (auto& work : transfer.works) work.finish();
    Rows arrived{at::empty({plan.rows_R, transfer.recv_rows.size(1)}, transfer.recv_rows.options()), {}};
    kernels::gather_rows(transfer.recv_rows, plan.source_of_R, arrived.rows);
    if (transfer.recv_scalars.defined()) {
      Tensor scalars_R1 = at::empty({plan.rows_R, 1}, transfer.recv_scalars.options());
      kernels::gather_rows(transfer.recv_scalars.view({-1, 1}), plan.source_of_R, scalars_R1);
      arrived.scalars = scalars_R1.view({-1});
    }
    return arrived;
  }

  Transfer start_give_back(const DispatchPlan& plan, const Tensor& rows_RD, const Tensor& scalars_R) const override {
    const int64_t arrived = static_cast<int64_t>(plan.place_of_N.size());
    Transfer transfer;
    transfer.send_rows = at::empty({arrived, rows_RD.size(1)}, rows_RD.options());
    kernels::gather_rows(rows_RD, plan.place_of_N, transfer.send_rows);
    if (scalars_R.defined()) {
      Tensor packed = at::empty({arrived, 1}, scalars_R.options());
      kernels::gather_rows(scalars_R.view({-1, 1}), plan.place_of_N, packed);
      transfer.send_scalars = packed.view({-1});
    }
    exchange(transfer, {plan.recv_counts, plan.send_counts});
    return transfer;
  }

  Rows finish_give_back(const DispatchPlan& plan, Transfer& transfer) const override {
    for (auto& work : transfer.works) work.finish();
    const Routing& routing = *plan.routing;
    Rows home{at::empty({routing.tokens, transfer.recv_rows.size(1)}, transfer.recv_rows.options()),
              transfer.recv_scalars};
    kernels::sum_rows(transfer.recv_rows, routing.token_offsets_T1, routing.token_rows_N, false, home.rows);
    return home;
  }

 private:
  void exchange(Transfer& t, const Lane& lane) const {
    t.recv_rows = rows_.start(t.send_rows, lane, t.works);
    if (t.send_scalars.defined()) t.recv_scalars = scalars_.start(t.send_scalars, lane, t.works);
  }

  comm::Group ep_;
  RowCarrier rows_, scalars_;
};

}  // namespace

std::unique_ptr<Dispatcher> all_to_all_dispatcher(const RowCarrier& rows) {
  return std::make_unique<AllToAllDispatcher>(rows);
}

}  // namespace conclave::moe
