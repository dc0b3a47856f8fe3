// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_shared_memory.h"

#include <sys/statvfs.h>

#include <cstring>
#include <exception>

#include "comm/mpi_error.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

constexpr int64_t kAlignment = 64;
// Where Open MPI puts the files of its windows.
constexpr const char* kDirectory = "/dev/shm";

// Open MPI makes sparse files: without room for them a first write, much later, ends the process with SIGBUS.
void check_room(int64_t bytes) {
  struct statvfs room {};
  if (statvfs(kDirectory, &room) != 0) return;  // no such directory: Open MPI takes another
  const auto free = static_cast<int64_t>(room.f_bavail) * static_cast<int64_t>(room.f_frsize);
  if (free >= bytes) return;
  throw CommError(
      "the ranks of this host need {} MiB more of shared memory, but {} has {} MiB left: make it larger (docker run "
      "--shm-size), or set moe.dispatch.type: alltoall",
      (bytes >> 20) + 1, kDirectory, free >> 20);
}

class MpiSharedMemory : public SharedMemory {
 public:
  MpiSharedMemory(MPI_Comm comm, int64_t bytes) : bytes_(bytes), unwinding_(std::uncaught_exceptions()) {
    void* base = nullptr;
    must(MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes + kAlignment), 1, MPI_INFO_NULL, comm, &base, &window_),
         "MPI_Win_allocate_shared", comm);
    must(MPI_Win_lock_all(MPI_MODE_NOCHECK, window_), "MPI_Win_lock_all", comm);
    int rank = 0;
    must(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank", comm);
    const auto own = region(rank);
    std::memset(own.data(), 0, own.size());  // takes the pages now
    must(MPI_Barrier(comm), "MPI_Barrier", comm);
  }
  MpiSharedMemory(const MpiSharedMemory&) = delete;
  MpiSharedMemory& operator=(const MpiSharedMemory&) = delete;
  // Freeing a window is collective: a rank that unwinds, or comes after MPI_Finalize, leaves it.
  ~MpiSharedMemory() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized || std::uncaught_exceptions() != unwinding_) return;
    MPI_Win_unlock_all(window_);
    MPI_Win_free(&window_);
  }

  std::span<std::byte> region(int rank) const override {
    MPI_Aint size = 0;
    int unit = 1;
    void* base = nullptr;
    MPI_Win_shared_query(window_, rank, &size, &unit, &base);
    // All processes map the window at page boundaries, so they agree on this.
    const auto address = reinterpret_cast<uintptr_t>(base);
    const uintptr_t aligned = (address + kAlignment - 1) / kAlignment * kAlignment;
    return {reinterpret_cast<std::byte*>(aligned), static_cast<size_t>(bytes_)};
  }

 private:
  int64_t bytes_;
  int unwinding_;
  MPI_Win window_ = MPI_WIN_NULL;
};

}  // namespace

std::shared_ptr<SharedMemory> make_mpi_shared_memory(MPI_Comm comm, int64_t bytes) {
  int ranks = 1;
  must(MPI_Comm_size(comm, &ranks), "MPI_Comm_size", comm);
  check_room(ranks * (bytes + kAlignment));
  return std::make_shared<MpiSharedMemory>(comm, bytes);
}

}  // namespace conclave::comm
