// SPDX-License-Identifier: Apache-2.0
// Carries rows between the ranks where tokens live and the ranks that own their experts. Two verbs, each also the
// other's backward:
//
//   send:       token rows x[T, D] → expert rows [R, D], one for each kept (token, expert) pair, by (source, expert)
//   give_back:  expert rows [R, D] → y[T, D], the sum over each token's rows in choice order
//
// A scalar may travel with each pair (the gate; backward: its gradient). A dispatcher owns no parameters. Rows of one
// (source, expert) pair form a segment, padded with zero rows to a multiple of 16: the fixed rule under which expert
// products are bitwise the same in every layout. All ranks of the group take part, also with no rows. R rows received
// incl. padding, N pairs sent.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "comm/group.h"
#include "core/tensor.h"
#include "moe/moe_config.h"
#include "moe/routing.h"

namespace conclave::moe {

struct Segment {
  int64_t expert = 0;  // local index at the owner
  int source = 0;      // rank of the ep group the rows came from
  int64_t begin = 0;   // first row
  int64_t rows = 0;    // incl. padding; a multiple of 16
};

// What only one dispatcher knows about its plan or transfer.
struct DispatchDetails {
  virtual ~DispatchDetails() = default;
};

// Where each row goes, from one routing and one exchange of counts; saved for backward, never computed again.
struct DispatchPlan {
  const Routing* routing = nullptr;
  std::vector<Segment> segments;
  int64_t rows_R = 0;
  std::vector<int32_t>
      source_of_R;  // index into what arrived (local: the token; all-to-all: the receive buffer); -1 = padding
  std::vector<int32_t> pair_of_R;                 // local only: index of the pair; -1 = padding
  std::vector<int32_t> place_of_N;                // inverse of source_of_R over what arrived
  std::vector<int64_t> send_counts, recv_counts;  // pairs for each rank of the group
  std::shared_ptr<const DispatchPlan> inner;      // of a dispatcher around another; recv_counts are then rows
  std::shared_ptr<const DispatchDetails> details;
  std::function<Tensor(const Tensor& rows_RD)> make_results;

  // Memory for rows like `rows_RD` that are to be given back: where the dispatcher likes them best.
  Tensor empty_results(const Tensor& rows_RD) const;
};

struct Transfer {
  Tensor send_rows, recv_rows, send_scalars, recv_scalars;
  std::vector<comm::Work> works;
  std::shared_ptr<DispatchDetails> details;
};

struct Rows {
  Tensor rows, scalars;  // scalars undefined when none were sent
};

class Dispatcher {
 public:
  static constexpr int64_t kRowMultiple = 16;

  virtual ~Dispatcher() = default;
  // Collective. Several plans and transfers may be under way at a time; all ranks start them in one order, and finish
  // them in one. Rows that are given back are not written any more, other ranks may still read them.
  virtual DispatchPlan plan(const Routing& routing) const = 0;
  virtual Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const = 0;
  virtual Rows finish_send(const DispatchPlan& plan, Transfer& transfer) const = 0;  // rows [R, D], scalars [R]
  virtual Transfer start_give_back(const DispatchPlan& plan, const Tensor& rows_RD, const Tensor& scalars_R) const = 0;
  virtual Rows finish_give_back(const DispatchPlan& plan, Transfer& transfer) const = 0;  // rows [T, D], scalars [N]

  // `auto` is local for a group of one, alltoall otherwise; dispatcher_choice.h knows better. Collective. Throws
  // ConfigError where the ranks of `ep` are not where the dispatcher needs them.
  static std::unique_ptr<Dispatcher> make(const DispatchConfig& config, const comm::Group& ep);
  // The same as if the ranks were on other hosts: `hosts` has for each rank the lowest one on its host. For those who
  // measure what hosts change. Collective.
  static std::unique_ptr<Dispatcher> make_on(const std::vector<int>& hosts, const DispatchConfig& config,
                                             const comm::Group& ep);
  // `inner`, for experts whose width is spread over the ranks of `etp` (dispatchers/expert_tensor.cpp). A segment's
  // source is then (rank of ep) * etp + rank of etp.
  // Collective; rows between hosts of `etp` have the payload's format too.
  static std::unique_ptr<Dispatcher> over_expert_parts(std::unique_ptr<Dispatcher> inner, const comm::Group& etp,
                                                       DispatchPayload payload = DispatchPayload::kSame);
};

// Adds the segments of one source, `counts_e` rows for each local expert in order; `first` is where they lie in what
// arrived.
void append_segments(std::span<const int32_t> counts_e, int source, int64_t first, DispatchPlan& plan);

}  // namespace conclave::moe
