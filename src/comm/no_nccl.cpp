// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_group.h"
#include "core/error.h"

namespace conclave::comm {

std::shared_ptr<Transport> make_nccl_world(const Group&) {
  throw ConfigError(
      "comm.backend: nccl: this conclave was built without NCCL; configure with the cuda preset (cmake --preset cuda), "
      "or "
      "use comm.backend: mpi");
}

}  // namespace conclave::comm
