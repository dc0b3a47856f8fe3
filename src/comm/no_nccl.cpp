// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_group.h"
#include "core/error.h"

namespace conclave::comm {

std::shared_ptr<NcclLibrary> make_nccl_library(ComputeStream) {
  throw ConfigError(
      "comm.backend: nccl: this conclave was built without NCCL; configure with the cuda preset (cmake --preset cuda), "
      "or use comm.backend: mpi");
}

std::shared_ptr<Transport> make_nccl_world(const Group&, ComputeStream) {
  make_nccl_library();
  return nullptr;
}

}  // namespace conclave::comm
