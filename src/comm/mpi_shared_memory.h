// SPDX-License-Identifier: Apache-2.0
// Shared memory of processes of one host, as an MPI window. Private to mpi_group.cpp.
#pragma once

#include <mpi.h>

#include <memory>

#include "comm/group.h"

namespace conclave::comm {

// See Transport::share. Collective over `comm`.
std::shared_ptr<SharedMemory> make_mpi_shared_memory(MPI_Comm comm, int64_t bytes);

}  // namespace conclave::comm
