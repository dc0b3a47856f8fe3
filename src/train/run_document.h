// SPDX-License-Identifier: Apache-2.0
// A configuration that was put together in memory, such as a run of a sweep. It obeys the rules of one that is read
// from a file, and its problems point at the places its values came from.
#pragma once

#include "train/run_config.h"

namespace conclave::train {

// Replaces ${...}, reads, checks and resolves `document`, whose includes are merged already. Throws ConfigError with
// every problem found.
LoadedConfig load_config(config::Node document, const LoadOptions& options);

}  // namespace conclave::train
