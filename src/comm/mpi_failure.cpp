// SPDX-License-Identifier: Apache-2.0
// How failing ranks find each other: each sends its failure to all others and looks, for a while, whether theirs
// arrive.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "comm/mpi_error.h"
#include "comm/mpi_group.h"

namespace conclave::comm {
namespace {

// Fixed size, so that nobody has to ask how long a message is. Longer ones are cut here; the rank that prints has its
// own in full.
struct Record {
  int32_t code = 0;
  char message[8188] = "";
};

}  // namespace

struct MpiFailureExchange::State {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  std::vector<Record> records;  // outlive run(): late messages may still land here
  std::vector<MPI_Request> sends;
  std::vector<MPI_Request> receives;
};

MpiFailureExchange::MpiFailureExchange() : state_(std::make_unique<State>()) {
  must(MPI_Comm_dup(MPI_COMM_WORLD, &state_->comm), "MPI_Comm_dup", MPI_COMM_WORLD);
  MPI_Comm_set_errhandler(state_->comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(state_->comm, &state_->rank);
  MPI_Comm_size(state_->comm, &state_->size);
}

// The communicator goes with MPI_Finalize: freeing it is collective, and this may be a failing rank.
MpiFailureExchange::~MpiFailureExchange() = default;

std::vector<Failure> MpiFailureExchange::run(const Failure& own, double seconds) {
  State& s = *state_;
  std::vector<Failure> failures(s.size);
  failures[s.rank] = own;
  s.records.resize(s.size);
  Record& mine = s.records[s.rank];
  mine.code = own.code;
  std::memcpy(mine.message, own.message.data(), std::min(own.message.size(), sizeof(mine.message) - 1));
  s.receives.assign(s.size, MPI_REQUEST_NULL);
  s.sends.assign(s.size, MPI_REQUEST_NULL);
  for (int r = 0; r < s.size; ++r) {
    if (r == s.rank) continue;
    must(MPI_Irecv(&s.records[r], sizeof(Record), MPI_BYTE, r, 0, s.comm, &s.receives[r]), "MPI_Irecv", s.comm);
    must(MPI_Isend(&mine, sizeof(Record), MPI_BYTE, r, 0, s.comm, &s.sends[r]), "MPI_Isend", s.comm);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (bool all = false; !all && std::chrono::steady_clock::now() < end;) {
    all = true;
    for (int r = 0; r < s.size; ++r) {
      int sent = 1, received = 1;
      MPI_Test(&s.sends[r], &sent, MPI_STATUS_IGNORE);
      const bool was_open = s.receives[r] != MPI_REQUEST_NULL;
      MPI_Test(&s.receives[r], &received, MPI_STATUS_IGNORE);
      if (was_open && received) failures[r] = {s.records[r].code, s.records[r].message};
      all = all && sent && received;
    }
    if (!all) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return failures;
}

}  // namespace conclave::comm
