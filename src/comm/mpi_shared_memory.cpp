// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_shared_memory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <limits>

#include "comm/mpi_error.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

constexpr int64_t kAlignment = 64;
// Where Open MPI puts the files of its windows.
constexpr const char* kDirectory = "/dev/shm";
// Pages at the ends of a region, and what else the host may want.
constexpr int64_t kSlack = 64 * 1024;

// Bytes left; no limit where Open MPI takes another directory.
int64_t free_room() {
  struct statvfs room {};
  if (statvfs(kDirectory, &room) != 0) return std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(room.f_bavail) * static_cast<int64_t>(room.f_frsize);
}

[[noreturn]] void throw_no_room(int64_t bytes, int64_t left) {
  throw CommError(
      "the ranks of this host need {} MiB more of shared memory, but {} has {} MiB left: make it larger (docker run "
      "--shm-size), or set moe.dispatch.type: alltoall",
      (bytes >> 20) + 1, kDirectory, left >> 20);
}

// One rank of the host at a time looks for room and takes it: those of other groups, and of other jobs, take from the
// same. Nobody communicates meanwhile, so nobody waits for long.
class RoomLock {
 public:
  RoomLock() : directory_(::open(kDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    while (directory_ >= 0 && ::flock(directory_, LOCK_EX) != 0 && errno == EINTR) continue;
  }
  RoomLock(const RoomLock&) = delete;
  RoomLock& operator=(const RoomLock&) = delete;
  ~RoomLock() {
    if (directory_ >= 0) ::close(directory_);
  }

 private:
  int directory_;
};

// Open MPI makes sparse files: without room for them a first write, much later, ends the process with SIGBUS. So the
// pages are taken now. Returns how many bytes there are no pages for.
int64_t take_pages(std::span<std::byte> memory) {
  const RoomLock lock;
  const auto bytes = static_cast<int64_t>(memory.size());
  if (free_room() < bytes + kSlack) return bytes;
  std::memset(memory.data(), 0, memory.size());
  return 0;
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
    int64_t lacking = take_pages(region(rank));
    must(MPI_Allreduce(MPI_IN_PLACE, &lacking, 1, MPI_INT64_T, MPI_SUM, comm), "MPI_Allreduce", comm);
    if (lacking > 0) throw_no_room(lacking, free_room());
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
  // Before anything is made; the last word has take_pages.
  const int64_t all = ranks * (bytes + kAlignment), left = free_room();
  if (left < all) throw_no_room(all, left);
  return std::make_shared<MpiSharedMemory>(comm, bytes);
}

}  // namespace conclave::comm
