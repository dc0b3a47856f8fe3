// SPDX-License-Identifier: Apache-2.0
// A token crosses to each host once, however many of its experts live there: to the rank's partner on that host, which
// forwards it to the owners. Results are added up on the host and cross back as one row for each token.
//
//   host A: rank 0, 1          host B: rank 2, 3
//   0 ── tokens with experts on B, once ──> 2 ── rows ──> 2, 3        1 ──> 3 ──> 2, 3
//   0 <── their sums over the experts of B ── 2 <── results ── 2, 3
#include <ATen/ops/empty.h>

#include "kernels/rows.h"
#include "moe/dispatchers/hierarchical_plan.h"
#include "moe/dispatchers/row_carrier.h"

namespace conclave::moe {
namespace {

Tensor picked(const Tensor& rows, const std::vector<int32_t>& order) {
  Tensor result = at::empty({std::ssize(order), rows.size(1)}, rows.options());
  kernels::gather_rows(rows, order, result);
  return result;
}

Tensor summed(const Tensor& rows, const TokenSums& sums) {
  Tensor result = at::empty({std::ssize(sums.offsets) - 1, rows.size(1)}, rows.options());
  kernels::sum_rows(rows, sums.offsets, sums.rows, false, result);
  return result;
}

class HierarchicalDispatcher : public Dispatcher {
 public:
  HierarchicalDispatcher(const RowCarrier& rows, const std::vector<int>& hosts)
      : rows_(rows),
        scalars_(rows.group()),
        map_(hosts, rows.group().rank()),
        host_(rows.group().split(map_.host(), rows.group().rank())) {}

  DispatchPlan plan(const Routing& routing) const override {
    return plan_hierarchical(rows_.group(), host_.group(), map_, routing);
  }

  // Under way: source → forwarder, between hosts.
  Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    const auto& lists = lists_of(plan);
    Transfer transfer;
    transfer.send_rows = picked(x_TD, lists.tokens_U);
    transfer.recv_rows = rows_.start(transfer.send_rows, {lists.sent_tokens, lists.served_tokens}, transfer.works);
    if (scalars_N.defined()) {
      transfer.send_scalars = picked(scalars_N.view({-1, 1}), lists.pairs_P);
      transfer.recv_scalars =
          scalars_.start(transfer.send_scalars, {lists.sent_pairs, lists.served_pairs}, transfer.works);
    }
    return transfer;
  }

  Rows finish_send(const DispatchPlan& plan, Transfer& transfer) const override {
    finish(transfer);
    const auto& lists = lists_of(plan);
    const bool scalars = transfer.recv_scalars.defined();
    const Rows here = within_host({picked(transfer.recv_rows, lists.forward_rows),
                                   scalars ? picked(transfer.recv_scalars, lists.forward_pairs) : Tensor()},
                                  {lists.forwarded, lists.received});
    return {picked(here.rows, plan.source_of_R),
            scalars ? picked(here.scalars, plan.source_of_R).view({-1}) : Tensor()};
  }

  // Owner → forwarder is over when this returns; under way is forwarder → source, between hosts.
  Transfer start_give_back(const DispatchPlan& plan, const Tensor& rows_RD, const Tensor& scalars_R) const override {
    const auto& lists = lists_of(plan);
    const bool scalars = scalars_R.defined();
    const Rows here = within_host(
        {picked(rows_RD, lists.row_of_pair), scalars ? picked(scalars_R.view({-1, 1}), lists.row_of_pair) : Tensor()},
        {lists.received, lists.forwarded});
    Transfer transfer;
    transfer.send_rows = summed(here.rows, lists.partial);
    transfer.recv_rows = rows_.start(transfer.send_rows, {lists.served_tokens, lists.sent_tokens}, transfer.works);
    if (scalars) {
      transfer.send_scalars = picked(here.scalars, lists.forward_place);
      transfer.recv_scalars =
          scalars_.start(transfer.send_scalars, {lists.served_pairs, lists.sent_pairs}, transfer.works);
    }
    return transfer;
  }

  Rows finish_give_back(const DispatchPlan& plan, Transfer& transfer) const override {
    finish(transfer);
    const auto& lists = lists_of(plan);
    Rows home{summed(transfer.recv_rows, lists.home), {}};
    if (transfer.recv_scalars.defined()) home.scalars = picked(transfer.recv_scalars, lists.place_N).view({-1});
    return home;
  }

 private:
  static const HierarchicalPlan& lists_of(const DispatchPlan& plan) {
    return static_cast<const HierarchicalPlan&>(*plan.details);
  }
  static void finish(Transfer& transfer) {
    for (auto& work : transfer.works) work.finish();
    transfer.works.clear();
  }
  // Between the ranks of this host, over when this returns. Where a peer is lost the works go first, then what they
  // use.
  Rows within_host(const Rows& sent, const Lane& lane) const {
    Rows arrived;
    std::vector<comm::Work> works;
    arrived.rows = host_.start(sent.rows, lane, works);
    if (sent.scalars.defined()) arrived.scalars = host_.start(sent.scalars, lane, works);
    for (auto& work : works) work.finish();
    return arrived;
  }

  RowCarrier rows_, scalars_;  // of all ranks
  HostMap map_;
  RowCarrier host_;  // of the ranks of this host
};

}  // namespace

std::unique_ptr<Dispatcher> hierarchical_dispatcher(const RowCarrier& rows, const std::vector<int>& hosts) {
  return std::make_unique<HierarchicalDispatcher>(rows, hosts);
}

}  // namespace conclave::moe
