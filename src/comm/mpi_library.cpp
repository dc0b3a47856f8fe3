// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_library.h"

#include <mpi.h>

namespace conclave::comm {

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string all(text, length);
  return all.substr(0, all.find(','));
}

}  // namespace conclave::comm
