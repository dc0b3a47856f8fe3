// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_error.h"

#include "core/error.h"

namespace conclave::comm {

void must(int code, const char* call, MPI_Comm comm) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  int rank = -1;
  int size = 0;
  if (comm != MPI_COMM_NULL) {
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
  }
  throw CommError("{} failed on rank {} of a group of {}: {}", call, rank, size, text);
}

}  // namespace conclave::comm
