// SPDX-License-Identifier: Apache-2.0
// Every expert lives on this rank: one gather from the tokens into padded expert order, one ordered sum back.
#include <ATen/ops/empty.h>

#include "kernels/rows.h"
#include "moe/dispatcher.h"

namespace conclave::moe {
namespace {

class LocalDispatcher : public Dispatcher {
 public:
  DispatchPlan plan(const Routing& routing) const override {
    DispatchPlan plan;
    plan.routing = &routing;
    std::vector<int32_t> counts(routing.experts());
    for (int64_t e = 0; e < routing.experts(); ++e) counts[e] = routing.offsets_E1[e + 1] - routing.offsets_E1[e];
    append_segments(counts, 0, 0, plan);
    plan.pair_of_R = plan.source_of_R;
    for (auto& source : plan.source_of_R) source = source < 0 ? -1 : routing.rows_N[source];
    return plan;
  }

  Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    Transfer transfer;
    transfer.recv_rows = at::empty({plan.rows_R, x_TD.size(1)}, x_TD.options());
    kernels::gather_rows(x_TD, plan.source_of_R, transfer.recv_rows);
    if (scalars_N.defined()) {
      Tensor scalars_R1 = at::empty({plan.rows_R, 1}, x_TD.options());
      kernels::gather_rows(scalars_N.view({-1, 1}), plan.pair_of_R, scalars_R1);
      transfer.recv_scalars = scalars_R1.view({-1});
    }
    return transfer;
  }

  Rows finish_send(const DispatchPlan&, Transfer& transfer) const override {
    return {transfer.recv_rows, transfer.recv_scalars};
  }

  Transfer start_give_back(const DispatchPlan& plan, const Tensor& rows_RD, const Tensor& scalars_R) const override {
    const Routing& routing = *plan.routing;
    Transfer transfer;
    std::vector<int32_t> places(routing.token_rows_N.size());
    for (size_t i = 0; i < places.size(); ++i) places[i] = plan.place_of_N[routing.token_rows_N[i]];
    transfer.recv_rows = at::empty({routing.tokens, rows_RD.size(1)}, rows_RD.options());
    kernels::sum_rows(rows_RD, routing.token_offsets_T1, places, false, transfer.recv_rows);
    if (scalars_R.defined()) {
      Tensor scalars_N1 = at::empty({routing.pairs(), 1}, rows_RD.options());
      kernels::gather_rows(scalars_R.view({-1, 1}), plan.place_of_N, scalars_N1);
      transfer.recv_scalars = scalars_N1.view({-1});
    }
    return transfer;
  }

  Rows finish_give_back(const DispatchPlan&, Transfer& transfer) const override {
    return {transfer.recv_rows, transfer.recv_scalars};
  }
};

}  // namespace

std::unique_ptr<Dispatcher> local_dispatcher() { return std::make_unique<LocalDispatcher>(); }

}  // namespace conclave::moe
