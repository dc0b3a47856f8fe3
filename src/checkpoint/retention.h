// SPDX-License-Identifier: Apache-2.0
// Deletes what is no longer needed: old checkpoints and the leftovers of attempts that died. Only the owner of the run
// directory calls it, on one rank, and never while loading.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "core/failpoints.h"
#include "core/log.h"

namespace conclave::checkpoint {

struct Retention {
  int64_t newest = 0;             // committed and verified
  int64_t keep = 2;               // up to `newest`
  std::set<int64_t> passed_over;  // damaged ones that this run did not resume from: they count for nothing
};

// Deletes all but the newest `keep` checkpoints up to `newest`. Those passed over and those of later steps are not
// counted and not touched. Each is renamed first, so no half-deleted one keeps its name. Failpoint per checkpoint:
// mid-retention.
void retire_old(const std::filesystem::path& checkpoints, const Retention& rule, const std::string& attempt,
                Failpoints& failpoints);

// Deletes staging and trash folders, and temporary files, of attempts other than `attempt`. What cannot be deleted is
// logged.
void sweep_leftovers(const std::filesystem::path& checkpoints, const std::string& attempt, Log& log);

// Deletes half-written files of the run directory itself. Those of RUN.json and LOCK stay: a process that starts just
// now may be writing them.
void sweep_temporaries(const std::filesystem::path& run);

}  // namespace conclave::checkpoint
