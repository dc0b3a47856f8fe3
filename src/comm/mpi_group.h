// SPDX-License-Identifier: Apache-2.0
// Ranks as processes under Open MPI: host memory only. It does not notice a lost peer (Open MPI 4 ends the job or
// hangs; the watchdog and the launcher's keepalive answer that); MPI's own errors become CommError.
#pragma once

#include <cstdint>
#include <memory>

#include "comm/failure.h"
#include "comm/group.h"
#include "comm/progress.h"

namespace conclave::comm {

// MPI from MPI_Init_thread to MPI_Finalize; main (through World) makes the only one. While an exception unwinds through
// it, it does not finalize: that would wait for ranks that are elsewhere.
class MpiSession {
 public:
  MpiSession();  // throws CommError unless MPI_THREAD_MULTIPLE is there
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  int unwinding_;
};

// Where messages are cut. Open MPI counts in int, so nothing above 2 GiB passes in one call; small values are for
// tests.
struct MpiLimits {
  int64_t collective_bytes = int64_t{1} << 30;
  // All-to-all pieces: short enough that one direction's handshakes do not queue behind the other's bulk and that work
  // on the first ones can begin, long enough to fill a link.
  int64_t piece_bytes = int64_t{256} << 10;
  // All-to-alls of more bytes than this, sent or received, are advanced by Progress. Below, messages are eager: they
  // need nobody.
  int64_t eager_bytes = int64_t{1} << 16;
};

// All processes of the job, over a communicator of its own, which shares `progress` with all its splits. Needs a live
// MpiSession; collective.
std::shared_ptr<Transport> make_mpi_world(const MpiLimits& limits = {},
                                          std::shared_ptr<Progress> progress = std::make_shared<Progress>());

// Called by a rank that has failed: tells all others and waits up to `seconds` for those that fail too. Returns what
// is known, by rank. The ranks that go on working are not disturbed. At most one call per process and session.
class MpiFailureExchange {
 public:
  MpiFailureExchange();  // collective, right after the session starts: a failing rank could not make it any more
  ~MpiFailureExchange();
  std::vector<Failure> run(const Failure& own, double seconds);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::comm
