// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_baseline.h"

#include <mpi.h>

#include <vector>

#include "comm/mpi_error.h"

namespace conclave::comm {
namespace {

struct Pieces {
  explicit Pieces(std::span<const int64_t> bytes) : counts(bytes.begin(), bytes.end()) {
    int at = 0;
    for (const int count : counts) {
      places.push_back(at);
      at += count;
    }
  }
  std::vector<int> counts, places;
};

}  // namespace

void mpi_world_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                            std::span<std::byte> recv, std::span<const int64_t> recv_bytes) {
  const Pieces from(send_bytes), to(recv_bytes);
  must(MPI_Alltoallv(send.data(), from.counts.data(), from.places.data(), MPI_BYTE, recv.data(), to.counts.data(),
                     to.places.data(), MPI_BYTE, MPI_COMM_WORLD),
       "MPI_Alltoallv", MPI_COMM_WORLD);
}

}  // namespace conclave::comm
