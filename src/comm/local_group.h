// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process: the transport of the tests, and the specification the others are held to. Reductions
// add in rank order. It starts no threads: whoever does hands each one its transport.
#pragma once

#include <memory>
#include <vector>

#include "comm/group.h"

namespace conclave::comm {

// One transport per rank, for `size` threads; transport r belongs to the thread that plays rank r. Calls that do not
// fit together (other verb, other size) throw BugError. After abort() every waiting or later call of any group split
// from this world throws CommError naming the rank and its reason. `hosts` numbers the host that each rank is to be on;
// empty = all on one.
std::vector<std::shared_ptr<Transport>> make_local_world(int size, std::vector<int> hosts = {});

}  // namespace conclave::comm
