// SPDX-License-Identifier: Apache-2.0
// MPI's own all-to-all, for benchmarks that compare with it. Nothing else uses it: see Group::all_to_all_v.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave::comm {

// MPI_Alltoallv over all processes; sizes are bytes per rank, packed in rank order. Below 2 GiB in all.
void mpi_world_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                            std::span<std::byte> recv, std::span<const int64_t> recv_bytes);

}  // namespace conclave::comm
