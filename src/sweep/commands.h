// SPDX-License-Identifier: Apache-2.0
// The command line of each run of a sweep: to be started here, or written out for other hands.
#pragma once

#include <string>
#include <vector>

#include "sweep/folder.h"
#include "sweep/runner.h"

namespace conclave::sweep {

// Absolute paths of what starts runs.
struct Programs {
  std::filesystem::path conclave;
  std::filesystem::path launcher;  // launch/run, for runs of several ranks
};

// What trains `config` in the run directory `run`.
std::vector<std::string> train_command(const Programs& programs, int64_t ranks, const std::filesystem::path& config,
                                       const std::filesystem::path& run);

// The jobs of a plan whose files are in `folder`.
std::vector<Job> make_jobs(const Plan& plan, const Folder& folder, const Programs& programs);

// One shell line for each job.
std::string as_commands(const std::vector<Job>& jobs);
// A script for sbatch: an array with a task for each job, `at_once` of them at a time. A task that was told to make
// room saves and goes back to the queue.
std::string as_slurm_array(const std::string& name, const std::vector<Job>& jobs, int64_t ranks, int64_t at_once);

}  // namespace conclave::sweep
