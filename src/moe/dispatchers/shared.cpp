// SPDX-License-Identifier: Apache-2.0
// Ranks of one host: whoever sends a row writes it to its final place, the expert-major padded rows of the owner, which
// lie in memory that all ranks see; whoever takes rows back adds them up where the owner left them. One copy there, one
// sum back, no buffer between. Results have the bits of the all-to-all.
//
//   rank 0 writes  owner 0 [0: e0 e0 . . | e1 . . .]              owner 1 [0: e2 . . .| e3 e3 . . ]
//   rank 1 writes          [                         1: e1 . . . ]         [                        1: e2 e2 . . ]
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "comm/shared_window.h"
#include "core/error.h"
#include "kernels/rows.h"
#include "moe/dispatcher.h"

namespace conclave::moe {
namespace {

using comm::SharedWindow;

// What this rank has to do with the rows of one owner.
struct Share {
  int64_t rows = 0;                    // of the owner, from all ranks
  int64_t first = 0;                   // this rank's first
  std::vector<int32_t> tokens, pairs;  // from there on; -1 = padding
  std::vector<int32_t> places;         // of this rank's pairs with the owner, in their order
};

struct SharedPlan : DispatchDetails {
  std::vector<Share> shares;                      // by owner
  std::vector<kernels::RowPlace> token_places_N;  // the rows of each token, in the order of its sum
};

struct SharedTransfer : DispatchDetails {
  SharedWindow::Turn turn;
  Tensor rows, scalars;  // what is given back
};

int64_t padded(int64_t count) {
  return (count + Dispatcher::kRowMultiple - 1) / Dispatcher::kRowMultiple * Dispatcher::kRowMultiple;
}

// Rows, then the scalars that arrived with them, then those that are given back with them.
struct BlockLayout {
  BlockLayout(int64_t rows_R, int64_t width, const at::TensorOptions& options) : rows(rows_R), columns(width) {
    const auto item = static_cast<int64_t>(options.dtype().itemsize());
    constexpr int64_t line = SharedWindow::kAlignment;
    const auto lines = [](int64_t size) { return (size + line - 1) / line * line; };
    arrived_at = lines(rows * columns * item);
    returned_at = arrived_at + lines(rows * item);
    bytes = returned_at + lines(rows * item);
  }
  int64_t rows, columns, arrived_at, returned_at, bytes;
};

Tensor view_of(std::byte* data, std::vector<int64_t> sizes, const at::TensorOptions& options) {
  return at::from_blob(data, sizes, options);
}

// Keeps the block as long as the tensor lives.
Tensor tensor_of(std::shared_ptr<SharedWindow::Block> block, int64_t offset, std::vector<int64_t> sizes,
                 const at::TensorOptions& options) {
  std::byte* data = block->data() + offset;
  return at::from_blob(
      data, sizes, [block = std::move(block)](void*) {}, options);
}

class SharedDispatcher : public Dispatcher {
 public:
  explicit SharedDispatcher(const comm::Group& ep) : ep_(ep), window_(ep) {}

  DispatchPlan plan(const Routing& routing) const override {
    const int64_t E = routing.experts(), ranks = ep_.size(), local = E / ranks;
    check(local * ranks == E, "experts must divide over the ep group");
    std::vector<int32_t> own(E), all(E * ranks);
    for (int64_t e = 0; e < E; ++e) own[e] = routing.offsets_E1[e + 1] - routing.offsets_E1[e];
    ep_.all_gather(std::span<const int32_t>(own), std::span<int32_t>(all));
    DispatchPlan plan;
    plan.routing = &routing;
    auto details = std::make_shared<SharedPlan>();
    details->shares.resize(ranks);
    for (int64_t owner = 0; owner < ranks; ++owner) {
      Share& share = details->shares[owner];
      for (int64_t source = 0; source < ranks; ++source) {
        if (source == ep_.rank()) share.first = share.rows;
        for (int64_t e = owner * local; e < (owner + 1) * local; ++e) {
          const int64_t count = all[source * E + e], rows = padded(count);
          if (count > 0 && owner == ep_.rank())
            plan.segments.push_back({e - owner * local, static_cast<int>(source), share.rows, rows});
          if (source == ep_.rank()) append_rows(routing, e, share);
          share.rows += rows;
        }
      }
    }
    plan.rows_R = details->shares[ep_.rank()].rows;
    details->token_places_N = token_places(routing, details->shares, local);
    plan.details = std::move(details);
    plan.make_results = [window = window_](const Tensor& rows_RD) {
      const BlockLayout layout(rows_RD.size(0), rows_RD.size(1), rows_RD.options());
      auto block = window.allocate_or_grow_later(layout.bytes);
      return block ? tensor_of(std::move(block), 0, {layout.rows, layout.columns}, rows_RD.options())
                   : at::empty(rows_RD.sizes(), rows_RD.options());
    };
    return plan;
  }

  Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    const auto& shares = shares_of(plan);
    const BlockLayout own(plan.rows_R, x_TD.size(1), x_TD.options());
    auto transfer = std::make_shared<SharedTransfer>();
    transfer->turn = window_.open(window_.allocate(own.bytes), own.bytes);
    window_.meet(transfer->turn);
    for (int r = 0; r < ep_.size(); ++r) {
      // Everybody begins with another owner, and so with other memory.
      const int owner = (ep_.rank() + r) % ep_.size();
      write_rows(shares[owner], transfer->turn.blocks[owner], x_TD, scalars_N);
    }
    window_.written(transfer->turn);
    transfer->rows = tensor_of(transfer->turn.own, 0, {own.rows, own.columns}, x_TD.options());
    if (scalars_N.defined())
      transfer->scalars = tensor_of(transfer->turn.own, own.arrived_at, {own.rows}, x_TD.options());
    return transfer_of(std::move(transfer));
  }

  Rows finish_send(const DispatchPlan&, Transfer& transfer) const override {
    auto& state = state_of(transfer);
    window_.await(state.turn);
    window_.close(state.turn);
    return {state.rows, state.scalars};
  }

  Transfer start_give_back(const DispatchPlan&, const Tensor& rows_RD, const Tensor& scalars_R) const override {
    auto transfer = std::make_shared<SharedTransfer>();
    transfer->rows = rows_RD;
    transfer->scalars = scalars_R;
    const BlockLayout layout(rows_RD.size(0), rows_RD.size(1), rows_RD.options());
    auto block = window_.find(rows_RD.data_ptr());
    if (!block) block = window_.allocate(layout.bytes);
    transfer->turn = window_.open(block, layout.bytes);
    if (block) leave(*transfer, layout);
    return transfer_of(std::move(transfer));
  }

  Rows finish_give_back(const DispatchPlan& plan, Transfer& transfer) const override {
    auto& state = state_of(transfer);
    const at::TensorOptions options = state.rows.options();
    const int64_t D = state.rows.size(1);
    const bool lacked = !state.turn.own;
    window_.meet(state.turn);
    if (lacked) leave(state, {state.rows.size(0), D, options});
    window_.await(state.turn);
    const Routing& routing = *plan.routing;
    const auto& shares = shares_of(plan);
    std::vector<Tensor> sources;
    for (int owner = 0; owner < ep_.size(); ++owner)
      sources.push_back(view_of(state.turn.blocks[owner], {shares[owner].rows, D}, options));
    Rows home{at::empty({routing.tokens, D}, options), {}};
    kernels::sum_placed_rows(sources, routing.token_offsets_T1,
                             static_cast<const SharedPlan&>(*plan.details).token_places_N, home.rows);
    if (state.scalars.defined()) home.scalars = take_scalars(state, shares, {routing.pairs(), D});
    window_.close(state.turn);
    return home;
  }

 private:
  static const std::vector<Share>& shares_of(const DispatchPlan& plan) {
    return static_cast<const SharedPlan&>(*plan.details).shares;
  }
  static Transfer transfer_of(std::shared_ptr<SharedTransfer> details) {
    Transfer transfer;
    transfer.details = std::move(details);
    return transfer;
  }
  static SharedTransfer& state_of(Transfer& transfer) { return static_cast<SharedTransfer&>(*transfer.details); }

  // This rank's pairs with expert e, at the end of what it has with the owner so far.
  static void append_rows(const Routing& routing, int64_t e, Share& share) {
    for (int32_t n = routing.offsets_E1[e]; n < routing.offsets_E1[e + 1]; ++n) {
      share.places.push_back(static_cast<int32_t>(share.first + std::ssize(share.tokens)));
      share.tokens.push_back(routing.rows_N[n]);
      share.pairs.push_back(n);
    }
    share.tokens.resize(padded(std::ssize(share.tokens)), -1);
    share.pairs.resize(share.tokens.size(), -1);
  }

  static std::vector<kernels::RowPlace> token_places(const Routing& routing, const std::vector<Share>& shares,
                                                     int64_t local) {
    std::vector<kernels::RowPlace> of_N;
    of_N.reserve(routing.pairs());
    for (size_t owner = 0; owner < shares.size(); ++owner)
      for (const int32_t place : shares[owner].places) of_N.push_back({static_cast<int32_t>(owner), place});
    check(std::ssize(of_N) == routing.offsets_E1[shares.size() * local], "every pair has an owner");
    std::vector<kernels::RowPlace> in_token_order;
    in_token_order.reserve(of_N.size());
    for (const int32_t n : routing.token_rows_N) in_token_order.push_back(of_N[n]);
    return in_token_order;
  }

  static void write_rows(const Share& share, std::byte* block, const Tensor& x_TD, const Tensor& scalars_N) {
    const auto count = std::ssize(share.tokens);
    const BlockLayout layout(share.rows, x_TD.size(1), x_TD.options());
    Tensor rows = view_of(block, {layout.rows, layout.columns}, x_TD.options()).narrow(0, share.first, count);
    kernels::gather_rows(x_TD, share.tokens, rows);
    if (!scalars_N.defined()) return;
    Tensor scalars = view_of(block + layout.arrived_at, {layout.rows, 1}, x_TD.options()).narrow(0, share.first, count);
    kernels::gather_rows(scalars_N.view({-1, 1}), share.pairs, scalars);
  }

  // Puts what is given back where the others find it.
  void leave(const SharedTransfer& transfer, const BlockLayout& layout) const {
    std::byte* block = transfer.turn.own->data();
    if (transfer.rows.data_ptr() != block) std::memcpy(block, transfer.rows.data_ptr(), transfer.rows.nbytes());
    if (transfer.scalars.defined())
      std::memcpy(block + layout.returned_at, transfer.scalars.data_ptr(), transfer.scalars.nbytes());
    window_.written(transfer.turn);
  }

  struct PairsAndWidth {
    int64_t pairs, width;
  };
  static Tensor take_scalars(const SharedTransfer& state, const std::vector<Share>& shares, PairsAndWidth sizes) {
    const at::TensorOptions options = state.rows.options();
    Tensor scalars_N1 = at::empty({sizes.pairs, 1}, options);
    int64_t first = 0;
    for (size_t owner = 0; owner < shares.size(); ++owner) {
      const Share& share = shares[owner];
      const BlockLayout layout(share.rows, sizes.width, options);
      const auto count = std::ssize(share.places);
      Tensor part = scalars_N1.narrow(0, first, count);
      kernels::gather_rows(view_of(state.turn.blocks[owner] + layout.returned_at, {share.rows, 1}, options),
                           share.places, part);
      first += count;
    }
    return scalars_N1.view({-1});
  }

  comm::Group ep_;
  SharedWindow window_;
};

}  // namespace

std::unique_ptr<Dispatcher> shared_dispatcher(const comm::Group& ep, const std::vector<int>& hosts) {
  std::vector<int> first;
  for (int r = 0; r < ep.size(); ++r)
    if (hosts[r] == r) first.push_back(r);
  if (first.size() > 1)
    throw ConfigError(
        "moe.dispatch.type: shared needs all {} ranks of an ep group on one host, but ranks {} of the group are on {} "
        "different hosts; use auto, alltoall or hierarchical, or a parallel.ep that divides the ranks of a host",
        ep.size(), fmt::join(first, ", "), first.size());
  return std::make_unique<SharedDispatcher>(ep);
}

}  // namespace conclave::moe
