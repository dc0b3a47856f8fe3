// SPDX-License-Identifier: Apache-2.0
// Collects weight gradients over the micro-batches of a step and sums them over the ranks: dense ones over dp, those of
// local experts over edp. Sums only; whoever holds the token count divides once. It knows no tensors: gradients are two
// flat ranges, dense and expert, in the layout of the parameters. Each rank gets the sums of the elements that it owns.
//
// The order of a step, the same on all ranks:
//   begin_step(M); for each own micro-batch: add into dense_gradient() and expert_gradient(s) for every source s, then
//   micro_batch_done(); finish(); dense() and expert() are the owned sums until the next begin_step.
// Sums over ranks are made bucket by bucket (shards.h). One that nobody adds to any more may be started before the last
// micro-batch is done, by complete(); finish() starts the others. When it starts changes no bit.
// Micro-batches may overlap: those after the next one to be done have buffers of their own, asked for by `ahead`, and
// are done in order.
// A *source* is the rank, of those that share the experts (ep, etp), whose tokens the gradient comes from: local
// experts work for the tokens of all of them at the same local step. `canonical` sums each source's micro-batches
// apart, as the tree over the global micro-batch index needs it (contract 8), at the price of as many expert buffers as
// sources; `fast` has one buffer for all micro-batches and sources, and adds the ranks' buffers on the tree over ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/timeline.h"
#include "parallel/parallel_config.h"
#include "parallel/shards.h"

namespace conclave::parallel {

struct GradientLayout {
  // Which rank sums what: dense gradients over dp, the ranks with the same dense weights, those of this rank's experts
  // over edp, the ranks with the same experts; dp * tp = edp * sources.
  Shards dense{0};
  Shards expert{0};
  bool sharded = false;          // a rank gets the sums of its part only; else all of them
  bool as_bf16 = false;          // each rank's gradients are rounded once before they are summed; `fast` only
  int64_t tp = 1;                // ranks that share a micro-batch's tokens; number of a source: dp rank * tp + tp rank
  int64_t sources = 1;           // per rank; number of its source s: edp rank * sources + s
  Timeline* timeline = nullptr;  // outlives the reducer
  std::vector<std::string> dense_names = {}, expert_names = {};  // of the buckets, for the timeline
};

// T is float or double.
template <typename T>
class GradientReducer {
 public:
  virtual ~GradientReducer() = default;
  // A step of `micro_batches` over all ranks. Throws ConfigError when this reduction cannot keep its promise for them.
  virtual void begin_step(int64_t micro_batches) = 0;
  // Where the micro-batch under way *adds* its gradients: zero, or the sum so far. Ask again for every micro-batch.
  virtual std::span<T> dense_gradient(int64_t ahead = 0) = 0;
  virtual std::span<T> expert_gradient(int64_t source, int64_t ahead = 0) = 0;
  virtual void micro_batch_done() = 0;
  // All of the step's micro-batches have begun, and none of them adds to this bucket any more: its sum starts. Buckets
  // of a kind from the last one on; the same calls on every rank. Collective over dp or edp.
  virtual void complete(bool expert, size_t bucket) = 0;
  // Collective over dp and edp.
  virtual void finish() = 0;
  // The global sums of the elements this rank owns. The caller may change them in place (scale, clip).
  virtual std::span<T> dense() = 0;
  virtual std::span<T> expert() = 0;
};

template <typename T>
std::unique_ptr<GradientReducer<T>> make_gradient_reducer(Reduction reduction, const GradientLayout& layout);

}  // namespace conclave::parallel
