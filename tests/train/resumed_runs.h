// SPDX-License-Identifier: Apache-2.0
// A run that goes on from what was saved, against one that never stopped.
#pragma once

#include "checkpoint/store.h"
#include "core/log.h"
#include "data/token_files.h"
#include "train/layout_runs.h"

namespace conclave::test {

// Two steps, their state in another model, a third step there, against three steps.
inline void expect_resume_keeps_the_bits(const LayoutCase& layout_case) {
  constexpr auto kCanonical = parallel::Reduction::kCanonical;
  RankRun whole({}, {}, layout_case, kCanonical), before({}, {}, layout_case, kCanonical),
      after({}, {}, layout_case, kCanonical);
  for (int64_t step = 0; step < 2; ++step) whole.step(step), before.step(step);
  const auto from = before.state(), to = after.state();
  ASSERT_EQ(from.size(), to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    ASSERT_EQ(from[i].name + from[i].role, to[i].name + to[i].role);
    std::copy(from[i].data.begin(), from[i].data.end(), to[i].data.begin());
  }
  after.restore(2);
  EXPECT_EQ(after.step(2).loss, whole.step(2).loss);
  EXPECT_EQ(after.all_state(), whole.all_state());
}

// A store on each rank of one run directory.
class RankStore {
 public:
  RankStore(const comm::Group& world, const std::filesystem::path& where)
      : store_(world, where, {.keep_last = 2, .directory = {.lock = {0.05, 0.5}}}, none_, *log_) {}
  checkpoint::Digest save(RankRun& run, int64_t step) {
    checkpoint::SaveContents contents;
    contents.step = step;
    return store_.save(contents, run.state()).state;
  }
  void load(RankRun& run, int64_t step) {
    checkpoint::ResumeRequest request;
    request.mode = "must";
    const auto manifest = store_.resume(request, run.state());
    ASSERT_TRUE(manifest && manifest->step == step);
    run.restore(step);
  }

 private:
  std::shared_ptr<Log> log_ = make_silent_log();
  Failpoints none_;
  checkpoint::Store store_;
};

}  // namespace conclave::test
