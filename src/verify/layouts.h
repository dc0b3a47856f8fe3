// SPDX-License-Identifier: Apache-2.0
// The ways a model can be spread over ranks that `conclave verify` compares, and what each one promises
// (docs/numerics.md). The configuration's own rules decide what is valid; nothing is run here.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/run_config.h"

namespace conclave::verify {

struct Layout {
  int64_t dp = 1, ep = 1;
  moe::DispatchType dispatch = moe::DispatchType::kAuto;  // kAuto: the model has no experts
  parallel::ExecutorType executor = parallel::ExecutorType::kSequential;
  parallel::Reduction reduction = parallel::Reduction::kCanonical;
  int64_t zero = 0;
  int64_t tp = 1, etp = 1;
  bool sequence_parallel = true;  // with tp
  // Other than `same`, the ep group is taken for one on two hosts, half of its ranks on each.
  moe::DispatchPayload payload = moe::DispatchPayload::kSame;
  // As the configuration says where they are absent.
  std::optional<moe::BackwardRows> backward_rows = {};
  std::optional<model::Recompute> recompute = {};

  int ranks() const { return static_cast<int>(dp * tp); }
  bool operator==(const Layout&) const = default;
};
// "dp 4 tp 2 ep 2 zero 1 canonical alltoall bf16 sequential"; short: "dp 4 tp 2 ep 2 zero 1". Axes of tensor
// parallelism only where they are more than 1.
std::string name_of(const Layout& layout);
std::string short_name_of(const Layout& layout);
// "alltoall bf16"; "-" where the model has no experts.
std::string dispatch_name_of(const Layout& layout);

enum class Promise {
  kBitwise,   // every number of every step has the reference's bits
  kClose,     // one step from equal state: loss, norm and each tensor's gradient within 1e-5, expert ids replayed
  kMeasured,  // the same comparison, of which nothing is promised but that numbers are finite
};
// `compressed`: rows travel as means of buckets (moe.dispatch.compression). A row's last bit may choose another bucket,
// and ranks of tp have buckets of their own tokens: what is not bitwise is not promised at all.
Promise promise_of(const Layout& layout, bool compressed = false);

// `config` under `layout`. Throws ConfigError where they do not fit.
train::RunConfig with_layout(const train::RunConfig& config, const Layout& layout);

struct Skipped {
  std::string what, why;
};

struct LayoutPlan {
  Layout reference;  // one rank
  std::vector<Layout> layouts;
  std::vector<Skipped> skipped;
};

// All layouts of 1 ... `ranks` ranks. `obstacle` is why canonical cannot be had on this machine, empty where it can.
// Throws ConfigError where the model does not even run on one rank.
LayoutPlan plan_layouts(const train::RunConfig& config, int64_t ranks, const std::string& obstacle);

// `config` with a step of a power of two of micro-batches, at least two for each of `ranks`, so that all layouts divide
// it whose dp is a power of two.
train::RunConfig with_divisible_batch(const train::RunConfig& config, int64_t ranks);

// Layouts with a dp that is no power of two do not divide the batch of the others (with_divisible_batch): for each such
// dp a batch and a plan of its own, where it has layouts. What these plans leave out is noted in `plan` instead of what
// it said of that dp.
struct OtherBatch {
  train::RunConfig config;
  LayoutPlan plan;
};
std::vector<OtherBatch> other_batches(const train::RunConfig& config, LayoutPlan& plan, int64_t ranks,
                                      const std::string& obstacle);

}  // namespace conclave::verify
