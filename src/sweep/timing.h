// SPDX-License-Identifier: Apache-2.0
// Short runs that measure the time of a step, one for each setting of a sweep, to be conducted alone on all cores after
// the runs that learn something.
#pragma once

#include <vector>

#include "sweep/commands.h"

namespace conclave::sweep {

// Writes their configurations into `folder`; empty when the sweep asks for no timing. Warm-up, evaluation and
// checkpoints before the end are left out.
std::vector<Job> make_timing_jobs(const Plan& plan, const Folder& folder, const Programs& programs);

}  // namespace conclave::sweep
