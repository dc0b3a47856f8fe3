// SPDX-License-Identifier: Apache-2.0
// Experts whose width is spread over the etp ranks: rows reach every rank that holds a part of their expert. Around
// another dispatcher, which takes them to one of these ranks:
//
//   send:       token rows → (inner) → rows at one rank of etp → all-gather over etp → rows of all, at all
//   give_back:  terms of a sum for the rows of all → reduce-scatter over etp → own rows → (inner) → token rows
//
// Every token rank dispatches its own tokens, so a row crosses the ep group once and not etp times (methods.md 3.7).
#include <numeric>

#include "kernels/rows.h"
#include "moe/dispatcher.h"
#include "moe/dispatchers/row_carrier.h"

namespace conclave::moe {
namespace {

class ExpertTensorDispatcher : public Dispatcher {
 public:
  ExpertTensorDispatcher(std::unique_ptr<Dispatcher> inner, const RowCarrier& rows)
      : inner_(std::move(inner)), etp_(rows.group()), rows_(rows), scalars_(rows.group()) {}

  DispatchPlan plan(const Routing& routing) const override {
    DispatchPlan plan;
    plan.routing = &routing;
    plan.inner = std::make_shared<DispatchPlan>(inner_->plan(routing));
    plan.recv_counts = etp_.all_gather_value(plan.inner->rows_R);
    plan.rows_R = std::accumulate(plan.recv_counts.begin(), plan.recv_counts.end(), int64_t{0});
    const auto own = std::span<const Segment>(plan.inner->segments);
    const auto counts = etp_.all_gather_value(static_cast<int64_t>(own.size()));
    std::vector<Segment> all(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    etp_.all_gather_v(own, std::span<Segment>(all), std::span<const int64_t>(counts));
    int64_t before = 0;
    auto segment = all.begin();
    for (int r = 0; r < etp_.size(); ++r) {
      for (int64_t i = 0; i < counts[r]; ++i, ++segment) {
        plan.segments.push_back(
            {segment->expert, segment->source * etp_.size() + r, before + segment->begin, segment->rows});
      }
      before += plan.recv_counts[r];
    }
    return plan;
  }

  Transfer start_send(const DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    return inner_->start_send(*plan.inner, x_TD, scalars_N);
  }

  Rows finish_send(const DispatchPlan& plan, Transfer& transfer) const override {
    const Rows own = inner_->finish_send(*plan.inner, transfer);
    return {rows_.gather(own.rows, plan.recv_counts),
            own.scalars.defined() ? scalars_.gather(own.scalars, plan.recv_counts) : Tensor()};
  }

  Transfer start_give_back(const DispatchPlan& plan, const Tensor& rows_RD, const Tensor& scalars_R) const override {
    return inner_->start_give_back(*plan.inner, reduce_scattered(plan, rows_, rows_RD),
                                   scalars_R.defined() ? reduce_scattered(plan, scalars_, scalars_R) : Tensor());
  }

  Rows finish_give_back(const DispatchPlan& plan, Transfer& transfer) const override {
    return inner_->finish_give_back(*plan.inner, transfer);
  }

 private:
  // The sum over ranks of what each has for this one's rows.
  Tensor reduce_scattered(const DispatchPlan& plan, const RowCarrier& carrier, const Tensor& terms) const {
    const int64_t rows = plan.inner->rows_R;
    Tensor received;  // goes after the works that write it
    std::vector<comm::Work> works;
    received = carrier.start(terms, {plan.recv_counts, std::vector<int64_t>(etp_.size(), rows)}, works);
    works[0].finish();
    Tensor sum = received.narrow(0, 0, rows);
    for (int r = 1; r < etp_.size(); ++r) kernels::add(sum, received.narrow(0, r * rows, rows));
    return sum;
  }

  std::unique_ptr<Dispatcher> inner_;
  comm::Group etp_;
  RowCarrier rows_, scalars_;
};

}  // namespace

std::unique_ptr<Dispatcher> Dispatcher::over_expert_parts(std::unique_ptr<Dispatcher> inner, const comm::Group& etp,
                                                          DispatchPayload payload) {
  if (etp.size() == 1) return inner;
  return std::make_unique<ExpertTensorDispatcher>(std::move(inner), RowCarrier(etp, etp.hosts(), payload));
}

}  // namespace conclave::moe
