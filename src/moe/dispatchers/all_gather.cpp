// SPDX-License-Identifier: Apache-2.0
// Every rank gets all tokens of the group and picks those of its experts; what its experts make of a token it adds up,
// and the sums of all ranks go home. Moves (ranks − 1) rows per token each way, however many experts a token has, in
// large pieces without packing: for many experts per token on few ranks (MegaScale-MoE, arXiv 2505.11432, 3.2).
#include <ATen/ops/empty.h>

#include <numeric>

#include "core/error.h"
#include "kernels/rows.h"
#include "moe/dispatcher.h"
#include "moe/dispatchers/row_carrier.h"

namespace conclave::moe {
namespace {

// A sum over rows for each token.
struct SumLists {
  std::vector<int32_t> offsets, rows;
};

struct AllGatherPlan : DispatchDetails {
  std::vector<int64_t> tokens, pairs;  // of each rank
  SumLists partial;                    // of all tokens, over the rows of this rank
  SumLists home;                       // of this rank's tokens, over what comes from the ranks one after the other
};

int64_t sum_of(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

// What all ranks decided, gathered.
struct AllRoutings {
  std::vector<int64_t> tokens, pairs;
  std::vector<int32_t> counts;    // [rank][expert]
  std::vector<int32_t> tokens_N;  // of all pairs, rank by rank
};

AllRoutings gather_routings(const comm::Group& ep, const Routing& routing) {
  const int64_t E = routing.experts(), ranks = ep.size();
  AllRoutings all;
  std::vector<int32_t> own(E);
  for (int64_t e = 0; e < E; ++e) own[e] = routing.offsets_E1[e + 1] - routing.offsets_E1[e];
  all.counts.resize(E * ranks);
  ep.all_gather(std::span<const int32_t>(own), std::span<int32_t>(all.counts));
  all.tokens = ep.all_gather_value(routing.tokens);
  for (int64_t r = 0; r < ranks; ++r)
    all.pairs.push_back(std::accumulate(all.counts.begin() + r * E, all.counts.begin() + (r + 1) * E, int64_t{0}));
  all.tokens_N.resize(sum_of(all.pairs));
  ep.all_gather_v(std::span<const int32_t>(routing.rows_N), std::span<int32_t>(all.tokens_N),
                  std::span<const int64_t>(all.pairs));
  return all;
}

// Rows of each of `tokens` tokens in ascending order; token_of_R is -1 for padding.
SumLists rows_by_token(const std::vector<int32_t>& token_of_R, int64_t tokens) {
  SumLists lists;
  lists.offsets.assign(tokens + 1, 0);
  for (const int32_t token : token_of_R)
    if (token >= 0) ++lists.offsets[token + 1];
  std::partial_sum(lists.offsets.begin(), lists.offsets.end(), lists.offsets.begin());
  std::vector<int32_t> next(lists.offsets.begin(), lists.offsets.end() - 1);
  lists.rows.resize(lists.offsets.back());
  for (size_t row = 0; row < token_of_R.size(); ++row)
    if (token_of_R[row] >= 0) lists.rows[next[token_of_R[row]]++] = static_cast<int32_t>(row);
  return lists;
}

// For each token the ranks that have one of its experts, as rows of [rank][token].
SumLists ranks_by_token(const Routing& routing, int64_t ranks) {
  const int64_t local = routing.experts() / ranks;
  std::vector<int32_t> token_of_row(ranks * routing.tokens, -1);
  for (int64_t e = 0; e < routing.experts(); ++e)
    for (int32_t n = routing.offsets_E1[e]; n < routing.offsets_E1[e + 1]; ++n)
      token_of_row[e / local * routing.tokens + routing.rows_N[n]] = routing.rows_N[n];
  return rows_by_token(token_of_row, routing.tokens);
}

class AllGatherDispatcher : public Dispatcher {
 public:
  explicit AllGatherDispatcher(const RowCarrier& rows) : ep_(rows.group()), rows_(rows), scalars_(rows.group()) {}

  DispatchPlan plan(const Routing& routing) const override {
    const int64_t E = routing.experts(), ranks = ep_.size(), local = E / ranks, first = local * ep_.rank();
    check(local * ranks == E, "experts must divide over the ep group");
    const AllRoutings all = gather_routings(ep_, routing);
    DispatchPlan plan;
    plan.routing = &routing;
    int64_t token_base = 0, pair_base = 0;
    for (int64_t r = 0; r < ranks; ++r) {
      const auto counts = std::span<const int32_t>(all.counts).subspan(r * E, E);
      const int64_t before = std::accumulate(counts.begin(), counts.begin() + first, int64_t{0});
      const size_t begin = plan.source_of_R.size();
      append_segments(counts.subspan(first, local), static_cast<int>(r), pair_base + before, plan);
      // Where the pair lies among all pairs; its token among all tokens.
      for (size_t i = begin; i < plan.source_of_R.size(); ++i) {
        const int32_t pair = plan.source_of_R[i];
        plan.pair_of_R.push_back(pair);
        if (pair >= 0) plan.source_of_R[i] = static_cast<int32_t>(token_base + all.tokens_N[pair]);
      }
      plan.recv_counts.push_back(std::accumulate(counts.begin() + first, counts.begin() + first + local, int64_t{0}));
      plan.send_counts.push_back(routing.offsets_E1[(r + 1) * local] - routing.offsets_E1[r * local]);
      token_base += all.tokens[r];
      pair_base += all.pairs[r];
    }
    auto details = std::make_shared<AllGatherPlan>();
    details->tokens = all.tokens;
    details->pairs = all.pairs;
    details->partial = rows_by_token(plan.source_of_R, token_base);
    details->home = ranks_by_token(routing, ranks);
    plan.details = std::move(details);
    return plan;
  }

  Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    const auto& details = details_of(plan);
    Transfer transfer;
    transfer.send_rows = x_TD.contiguous();
    transfer.recv_rows = rows_.start_gather(transfer.send_rows, details.tokens, transfer.works);
    if (!scalars_N.defined()) return transfer;
    transfer.send_scalars = scalars_N.contiguous().view({-1, 1});
    transfer.recv_scalars = scalars_.start_gather(transfer.send_scalars, details.pairs, transfer.works);
    return transfer;
  }

  Rows finish_send(const DispatchPlan& plan, Transfer& transfer) const override {
    for (auto& work : transfer.works) work.finish();
    Rows arrived{at::empty({plan.rows_R, transfer.recv_rows.size(1)}, transfer.recv_rows.options()), {}};
    kernels::gather_rows(transfer.recv_rows, plan.source_of_R, arrived.rows);
    if (transfer.recv_scalars.defined()) {
      Tensor scalars_R1 = at::empty({plan.rows_R, 1}, transfer.recv_scalars.options());
      kernels::gather_rows(transfer.recv_scalars, plan.pair_of_R, scalars_R1);
      arrived.scalars = scalars_R1.view({-1});
    }
    return arrived;
  }

  Transfer start_give_back(const DispatchPlan& plan, const Tensor& rows_RD, const Tensor& scalars_R) const override {
    const auto& details = details_of(plan);
    const int64_t D = rows_RD.size(1), own = plan.routing->tokens;
    Transfer transfer;
    transfer.send_rows = at::empty({sum_of(details.tokens), D}, rows_RD.options());
    kernels::sum_rows(rows_RD, details.partial.offsets, details.partial.rows, false, transfer.send_rows);
    const Lane lane{details.tokens, std::vector<int64_t>(ep_.size(), own)};
    transfer.recv_rows = rows_.start(transfer.send_rows, lane, transfer.works);
    if (!scalars_R.defined()) return transfer;
    transfer.send_scalars = at::empty({std::ssize(plan.place_of_N), 1}, rows_RD.options());
    kernels::gather_rows(scalars_R.view({-1, 1}), plan.place_of_N, transfer.send_scalars);
    transfer.recv_scalars = scalars_.start(transfer.send_scalars, {plan.recv_counts, plan.send_counts}, transfer.works);
    return transfer;
  }

  Rows finish_give_back(const DispatchPlan& plan, Transfer& transfer) const override {
    for (auto& work : transfer.works) work.finish();
    const auto& lists = details_of(plan).home;
    Rows home{at::empty({plan.routing->tokens, transfer.recv_rows.size(1)}, transfer.recv_rows.options()), {}};
    kernels::sum_rows(transfer.recv_rows, lists.offsets, lists.rows, false, home.rows);
    if (transfer.recv_scalars.defined()) home.scalars = transfer.recv_scalars.view({-1});
    return home;
  }

 private:
  static const AllGatherPlan& details_of(const DispatchPlan& plan) {
    return static_cast<const AllGatherPlan&>(*plan.details);
  }

  comm::Group ep_;
  RowCarrier rows_, scalars_;
};

}  // namespace

std::unique_ptr<Dispatcher> all_gather_dispatcher(const RowCarrier& rows) {
  return std::make_unique<AllGatherDispatcher>(rows);
}

}  // namespace conclave::moe
