// SPDX-License-Identifier: Apache-2.0
// Runs the user's own model under one layout after the other and compares every step with one rank. It prints nothing;
// report.h does.
#pragma once

#include <functional>
#include <optional>

#include "verify/compare.h"

namespace conclave::verify {

struct VerifyOptions {
  int64_t ranks = 4;  // at most
  int64_t steps = 3;
  bool replay = true;  // kClose layouts take the expert ids of the reference
  Fault fault = Fault::kNone;
  int threads = 1;  // of each rank
};

// What came of one layout.
struct Row {
  Layout layout;
  Promise promise = Promise::kBitwise;
  std::vector<Measure> largest = {};  // one for each quantity that was compared, in the order of Quantity
  std::optional<Measure> first = {};  // the first measure, in time, that breaks the promise
  // False: decisions flipped and were not replayed, so that nothing but what is not finite can be judged.
  bool judged = true;

  const Measure* find(Quantity quantity) const;
};

// Runs `body` on so many ranks and returns when they are done; on the calling process only those ranks run that are
// its own.
using RunRanks = std::function<void(int ranks, const std::function<void(const comm::Group&)>& body)>;

// Trains the reference here, then every layout of `plan`; calls `done` with each row, on the process of rank 0 only.
// Collective over the processes.
void verify(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
            const RunRanks& run_ranks, const std::function<void(const Row&)>& done);

}  // namespace conclave::verify
