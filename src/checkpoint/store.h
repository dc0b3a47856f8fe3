// SPDX-License-Identifier: Apache-2.0
// A run's checkpoints: saving with one atomic commit, keeping the newest few, and resuming. Knows bytes and names,
// neither models nor optimizers. One per rank, all calls collective, used by one thread.
#pragma once

#include <optional>
#include <set>

#include "checkpoint/plan.h"
#include "checkpoint/resume.h"
#include "checkpoint/run_directory.h"
#include "core/failpoints.h"
#include "core/log.h"

namespace conclave::checkpoint {

struct StoreOptions {
  int64_t keep_last = 3;                      // at least 2
  int64_t max_file_bytes = int64_t{4} << 30;  // a rank's part is split into files of about this size
  RunDirectoryOptions directory;
};

// What is saved beside the tensors; equal on all ranks.
struct SaveContents {
  int64_t step = 0;
  int64_t tokens = 0;   // consumed since step 0
  int64_t samples = 0;  // consumed since step 0
  Json environment = Json::object();
  Json layout = Json::object();
  ConfigRecord config;
  Json extra = Json::object();
};

struct Saved {
  std::filesystem::path folder;
  Digest state;
  int64_t bytes = 0;
  double seconds = 0;
};

class Store {
 public:
  // Opens or creates the run directory `where` (see RunDirectory for its errors) and sweeps what dead attempts left
  // there. Throws ConfigError if keep_last is below 2. `failpoints` and `log` outlive the store.
  Store(comm::Group group, const std::filesystem::path& where, const StoreOptions& options, Failpoints& failpoints,
        Log& log);

  const RunDirectory& directory() const { return directory_; }

  // Writes the state and commits it by one rename. On return it survives a power cut. On an error, the same on all
  // ranks (IoError with the bytes needed and free; NumericError for a value that is not finite; OwnedError if the lease
  // is lost), nothing is left behind and earlier checkpoints are untouched. Roles other than `buffer` must be finite.
  // A checkpoint of the same step is replaced.
  Saved save(const SaveContents& contents, const parallel::StateDict& state);

  // See checkpoint::resume; `request.run_id` is filled in.
  std::optional<Manifest> resume(ResumeRequest request, const parallel::StateDict& state);

 private:
  std::filesystem::path staging(int64_t step) const;
  void prepare(int64_t step, int64_t bytes);
  Manifest describe(const SaveContents& contents, const Plan& plan, const std::vector<Digest>& digests) const;
  void write_files(Manifest& manifest, const Plan& plan, const parallel::StateDict& state);
  void commit(const Manifest& manifest);
  void publish(int64_t step);
  void finish(const Manifest& manifest);

  comm::Group group_;
  StoreOptions options_;
  Failpoints& failpoints_;
  Log& log_;
  RunDirectory directory_;
  std::optional<Parent> parent_;
  std::set<int64_t> passed_over_;  // rank 0: damaged checkpoints, newer than the one resumed from
};

}  // namespace conclave::checkpoint
