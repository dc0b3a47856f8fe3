// SPDX-License-Identifier: Apache-2.0
// Starts ranks as threads of this process. For whole runs of several ranks inside one command; it does not notice a
// rank that hangs (a watchdog does).
#pragma once

#include <functional>

#include "comm/group.h"

namespace conclave::comm {

// Runs `body` on `ranks` new threads, each with its group over all of them, and waits. A rank that throws ends the
// others' collectives; then the lowest rank's own error is thrown here, or a lost peer where nothing else is known.
void run_thread_ranks(int ranks, const std::function<void(const Group&)>& body);

}  // namespace conclave::comm
