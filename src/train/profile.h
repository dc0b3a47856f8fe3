// SPDX-License-Identifier: Apache-2.0
// train.profile: the timeline of some steps, of all ranks, in one file of the run directory. It decides when to record;
// what is recorded are the spans of core/timeline.h, set by those who do the work.
#pragma once

#include <optional>
#include <string>

#include "checkpoint/run_directory.h"
#include "comm/group.h"
#include "core/timeline.h"

namespace conclave::train {

// Steps as the log counts them, from 1.
struct StepRange {
  int64_t first = 0, last = 0;
};
// "10..12" or "10"; null for anything else, also for steps that go backwards.
std::optional<StepRange> parse_step_range(const std::string& text);

class Profile {
 public:
  // All outlive it. `range` null: nothing is recorded.
  Profile(std::optional<StepRange> range, const comm::Group& world, Timeline& timeline,
          const checkpoint::RunDirectory& directory)
      : range_(range), world_(world), timeline_(timeline), directory_(directory) {}
  // Before step `step`. Collective, like the next two, on the first step of the range.
  void before(int64_t step);
  // After step `step` and what the trainer did behind it: returns the file where the trace was just written, empty
  // otherwise. Collective.
  std::string after(int64_t step);
  // The run ends with step `step`, in the middle of the range or not.
  std::string finish(int64_t step);

 private:
  std::string write(int64_t last);

  std::optional<StepRange> range_;
  comm::Group world_;
  Timeline& timeline_;
  const checkpoint::RunDirectory& directory_;
  int64_t begun_ = 0;  // first recorded step
};

}  // namespace conclave::train
