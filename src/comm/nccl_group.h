// SPDX-License-Identifier: Apache-2.0
// Ranks as processes with a GPU each, over NCCL. The build takes nccl_group.cpp with the cuda preset and no_nccl.cpp,
// which only says so, without it.
#pragma once

#include <memory>

#include "comm/group.h"

namespace conclave::comm {

// The ranks of `host_group`, which carries the rendezvous. Throws ConfigError in a build without NCCL.
std::shared_ptr<Transport> make_nccl_world(const Group& host_group);

}  // namespace conclave::comm
