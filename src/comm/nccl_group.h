// SPDX-License-Identifier: Apache-2.0
// Ranks as processes with a GPU each, over NCCL. The build takes nccl_group.cpp with the cuda preset and no_nccl.cpp,
// which only says so, without it. How the ranks communicate is nccl_transport.h's business.
#pragma once

#include <functional>
#include <memory>

#include "comm/group.h"
#include "comm/nccl_library.h"

namespace conclave::comm {

// The stream that a thread gives its computation to, where that is not the default stream.
using ComputeStream = std::function<DeviceStream()>;

// The ranks of `host_group`, which carries the rendezvous. Collective. Rank r of a host takes GPU r of those that its
// process sees. Throws ConfigError in a build without NCCL, without a GPU, or with fewer GPUs than ranks on a host.
std::shared_ptr<Transport> make_nccl_world(const Group& host_group, ComputeStream compute_stream = {});

// NCCL itself, for tests of parts. Throws as make_nccl_world does.
std::shared_ptr<NcclLibrary> make_nccl_library(ComputeStream compute_stream = {});

}  // namespace conclave::comm
