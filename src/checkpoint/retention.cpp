// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/retention.h"

#include <fmt/format.h>

#include "checkpoint/file.h"
#include "checkpoint/loader.h"

namespace conclave::checkpoint {

void retire_old(const path& checkpoints, const Retention& rule, const std::string& attempt, Failpoints& failpoints) {
  int64_t kept = 0;
  for (const int64_t step : list_steps(checkpoints)) {
    if (step > rule.newest || rule.passed_over.count(step) > 0 || ++kept <= rule.keep) continue;
    const auto trash = checkpoints / fmt::format(".trash-{:010}-{}", step, attempt);
    rename_file(checkpoints / step_name(step), trash);
    sync_folder(checkpoints);
    failpoints.hit("mid-retention");
    remove_tree(trash);
  }
}

void sweep_leftovers(const path& checkpoints, const std::string& attempt, Log& log) {
  std::error_code code;
  std::vector<path> leftovers;
  for (std::filesystem::directory_iterator it(checkpoints, code), end; !code && it != end; it.increment(code)) {
    const auto name = it->path().filename().string();
    const bool temporary = name.rfind(".LATEST.", 0) == 0;
    const bool other =
        (name.rfind(".staging-", 0) == 0 || name.rfind(".trash-", 0) == 0) && name.find(attempt) == std::string::npos;
    if (temporary || other) leftovers.push_back(it->path());
  }
  for (const auto& leftover : leftovers) {
    if (remove_tree(leftover))
      log.info("removed {}, left by an attempt that ended early", leftover.string());
    else
      log.warn("cannot remove {}, left by an attempt that ended early", leftover.string());
  }
}

void sweep_temporaries(const path& run) {
  std::error_code code;
  std::vector<path> temporaries;
  for (std::filesystem::directory_iterator it(run, code), end; !code && it != end; it.increment(code)) {
    const auto name = it->path().filename().string();
    const bool contended = name.rfind(".RUN.json.", 0) == 0 || name.rfind(".LOCK.", 0) == 0;
    if (name.front() == '.' && it->path().extension() == ".tmp" && !contended) temporaries.push_back(it->path());
  }
  for (const auto& temporary : temporaries) remove_tree(temporary);
}

}  // namespace conclave::checkpoint
