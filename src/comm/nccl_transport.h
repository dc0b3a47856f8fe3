// SPDX-License-Identifier: Apache-2.0
// Ranks with a GPU each. One group serves both memories: a verb whose buffers a GPU owns runs over NCCL on the
// communication stream, ordered after what the compute stream was given before and before what it is given afterwards
// (for a work: after finish()), and the host does not wait; everything else (control, counts, host memory, windows)
// goes through the group of host memory that it is built on.
#pragma once

#include <memory>

#include "comm/group.h"
#include "comm/nccl_family.h"

namespace conclave::comm {

// The ranks of `host`, which carries the rendezvous; the device to use is set. Collective. Throws CommError when they
// do not meet in time.
std::shared_ptr<Transport> make_nccl_transport(std::shared_ptr<NcclLibrary> library, const Group& host,
                                               const NcclLimits& limits = {});

}  // namespace conclave::comm
