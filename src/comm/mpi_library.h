// SPDX-License-Identifier: Apache-2.0
// Which MPI library this process runs with; may differ from the one it was compiled against.
#pragma once

#include <string>

namespace conclave::comm {

// "Open MPI v4.1.4". Any time, before MPI_Init too.
std::string mpi_library();

}  // namespace conclave::comm
