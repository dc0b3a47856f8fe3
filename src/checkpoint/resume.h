// SPDX-License-Identifier: Apache-2.0
// Which checkpoint a run continues from: the newest that is whole on every rank. Deletes and renames nothing.
#pragma once

#include <optional>

#include "checkpoint/loader.h"
#include "core/log.h"

namespace conclave::checkpoint {

struct ResumeRequest {
  // auto: newest valid one, or a fresh start if there are none. must: newest valid one. never: a fresh start, refused
  // where checkpoints exist. Anything else: the path of a checkpoint or of a run, used if this run has no checkpoints
  // of its own yet (so that the same command, repeated after a crash, continues).
  std::string mode = "auto";
  std::string run_id;   // checkpoints of the run directory that belong to another run are passed over; empty = any
  ConfigRecord config;  // now; compared with the one saved
  // What a key stood for that the saved record lacks: keys that are newer than the checkpoint.
  ConfigRecord defaults = {};
  bool check_config = true;
  LoadOptions load;
};

struct Resumed {
  Manifest manifest;
  std::filesystem::path folder;
  Digest digest;  // of the manifest's text
};

// Collective. `run` is the run directory. Fills `state`. Nothing on a fresh start, with `state` untouched. Damaged
// checkpoints are logged and passed over by all ranks together; if some exist and none is valid: NoCheckpointError.
// Another model configuration: ConfigError naming what differs.
std::optional<Resumed> resume(const comm::Group& group, const std::filesystem::path& run, const ResumeRequest& request,
                              const parallel::StateDict& state, Log& log);

// Collective. The newest valid checkpoint at `where`, a checkpoint's folder or a run directory: for commands that only
// read. Throws NoCheckpointError if there is none.
Resumed load_newest(const comm::Group& group, const std::filesystem::path& where, const ResumeRequest& request,
                    const parallel::StateDict& state, Log& log);

}  // namespace conclave::checkpoint
