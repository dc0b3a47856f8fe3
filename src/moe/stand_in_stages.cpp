// SPDX-License-Identifier: Apache-2.0
#include "moe/stand_in_stages.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <numeric>

#include "core/error.h"
#include "moe/decision.h"
#include "moe/stand_ins.h"
#include "nn/token_exchange.h"

namespace conclave::moe {
namespace {

// The pairs as if each were a token of its own with one expert: what comes home is then summed with nothing.
Routing one_by_one(const Routing& routing) {
  Routing pairs;
  pairs.tokens = routing.pairs();
  pairs.offsets_E1 = routing.offsets_E1;
  pairs.picks_N = routing.picks_N;
  pairs.rows_N.resize(routing.pairs());
  std::iota(pairs.rows_N.begin(), pairs.rows_N.end(), 0);
  pairs.token_rows_N = pairs.rows_N;
  pairs.token_offsets_T1.resize(routing.pairs() + 1);
  std::iota(pairs.token_offsets_T1.begin(), pairs.token_offsets_T1.end(), 0);
  return pairs;
}

struct UnderWay {
  Routing pairs;
  DispatchPlan plan;  // points to the pairs
  Transfer transfer;
};

}  // namespace

void ReturnOutputs::start_forward(nn::Frame& frame) {
  if (!frame.training()) return;
  auto& under_way = frame.saved<UnderWay>(index());
  under_way.pairs = one_by_one(frame.object_as<Decision>(slots_.decision).routing);
  under_way.plan = dispatcher_.plan(under_way.pairs);
  const Tensor& bare = frame.value(slots_.bare);
  check(under_way.plan.rows_R == bare.size(0), "pairs lie with their experts as their tokens' rows do");
  under_way.transfer = dispatcher_.start_give_back(under_way.plan, bare, {});
}

void ReturnOutputs::finish_forward(nn::Frame& frame) {
  if (!frame.training()) return;
  auto& under_way = frame.saved<UnderWay>(index());
  frame.value(slots_.home) = dispatcher_.finish_give_back(under_way.plan, under_way.transfer).rows;
  frame.forget(index());
}

std::vector<nn::Slot> StandInStage::inputs() const {
  std::vector<nn::Slot> inputs{slots_.routed, slots_.decision, slots_.stand_ins};
  for (const ReturnSlots& part : slots_.parts) inputs.insert(inputs.end(), {part.decision, part.home});
  return inputs;
}

void StandInStage::forward(nn::Frame& frame) {
  // Backward reads no values of it, and would keep them alive.
  frame.value(slots_.output) = std::exchange(frame.value(slots_.routed), Tensor());
}

void StandInStage::backward_input(nn::Frame& frame) {
  const Tensor& dy = frame.grad(slots_.output);
  const Choice& choice = frame.object_as<Decision>(slots_.decision).choice;
  const Batch& batch = frame.batch();
  StandIns stand_ins{choice, batch, {}, std::vector<int64_t>(choice.picks.count(), -1), {}};
  std::vector<Tensor> rows;
  int64_t first = 0;
  for (const ReturnSlots& part : slots_.parts) {
    const Routing& routing = frame.object_as<Decision>(part.decision).routing;
    for (int64_t n = 0; n < routing.pairs(); ++n) stand_ins.row_of_C[routing.picks_N[n]] = first + n;
    first += routing.pairs();
    rows.push_back(frame.value(part.home));
  }
  stand_ins.rows_ND = rows.size() == 1 ? rows[0] : at::cat(rows);
  stand_ins.dy_TD = tp_.size() > 1 ? nn::move_tokens(nn::TokenMove::kGather, dy, tp_) : dy;
  Tensor products = at::zeros({choice.tokens(), choice.experts}, dy.options());
  for (int64_t b = 0; b < batch.sequences; ++b) {
    stand_ins.write_products(b, products);
    frame.poll();
  }
  if (tp_.size() > 1) products = nn::move_tokens(nn::TokenMove::kReduceScatter, products, tp_);
  frame.add_grad(slots_.routed, dy);
  frame.add_grad(slots_.stand_ins, products);
}

}  // namespace conclave::moe
