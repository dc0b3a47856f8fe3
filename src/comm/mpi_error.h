// SPDX-License-Identifier: Apache-2.0
// MPI's error codes become CommError here and nowhere else. Private to the MPI sources.
#pragma once

#include <mpi.h>

namespace conclave::comm {

// Throws CommError, with the call, MPI's text and the rank in `comm`, unless `code` is MPI_SUCCESS.
void must(int code, const char* call, MPI_Comm comm);

}  // namespace conclave::comm
