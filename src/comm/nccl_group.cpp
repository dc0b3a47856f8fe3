// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_group.h"

#include <nccl.h>

#include "core/error.h"

namespace conclave::comm {

std::shared_ptr<Transport> make_nccl_world(const Group&) {
  int version = 0;
  ncclGetVersion(&version);
  throw ConfigError("comm.backend: nccl: NCCL {} is linked, the transport is not built yet; use comm.backend: mpi",
                    version);
}

}  // namespace conclave::comm
