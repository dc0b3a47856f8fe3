// SPDX-License-Identifier: Apache-2.0
// A run of the layout tests, trained on one rank and saved, for runs that begin with it or learn from it.
#pragma once

#include "checkpoint/store.h"
#include "data/token_files.h"
#include "train/config_record.h"
#include "train/layout_runs.h"

namespace conclave::test {

class SavedRun {
 public:
  // `extra`: what the checkpoint holds beside tensors.
  SavedRun(const LayoutCase& layout_case, int64_t steps, const checkpoint::Json& extra = checkpoint::Json::object()) {
    RankRun run(comm::Group(), {}, layout_case, parallel::Reduction::kFast);
    for (int64_t i = 0; i < steps; ++i) run.step(i);
    const auto log = make_silent_log();
    Failpoints none;
    checkpoint::Store store(comm::Group(), where(), {.directory = {.lock = {0.05, 0.5}}}, none, *log);
    checkpoint::SaveContents contents;
    contents.step = steps;
    contents.config = train::config_record(run.config());
    contents.extra = extra;
    store.save(contents, run.state());
  }
  std::string where() const { return directory_ / "run"; }

 private:
  data::TemporaryDirectory directory_;
};

}  // namespace conclave::test
