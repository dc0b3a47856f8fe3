// SPDX-License-Identifier: Apache-2.0
// The `checkpoint:` section.
#pragma once

#include "config/types.h"

namespace conclave::checkpoint {

struct CheckpointConfig {
  int64_t every = 200;
  int64_t keep_last = 3;
  std::string resume = "auto";
  bool async = false;
  std::string verify = "full";

  void fields(auto&& field) {
    field("every", every, "steps between saves; 0 = only at the end", config::kNotNegative);
    field("keep_last", keep_last, "checkpoints kept, at least 2", config::kPositive);
    field("resume", resume, "auto, must, never, or the path of a checkpoint");
    field("async", async, "write while training goes on");
    field("verify", verify, "full = every byte is checked before it is used");
  }
};

}  // namespace conclave::checkpoint
