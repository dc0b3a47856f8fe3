// SPDX-License-Identifier: Apache-2.0
// Ranks as threads for tests. A rank that throws fails the others' collectives; a test that hangs is told so after a
// while.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/failure.h"
#include "comm/local_group.h"
#include "core/error.h"

namespace conclave::test {

// What happened on each rank: null where the body returned.
inline std::vector<std::exception_ptr> rank_outcomes(int ranks, const std::function<void(comm::Group)>& body,
                                                     double hang_limit_seconds = 120,
                                                     const std::vector<int>& hosts = {}) {
  const auto transports = comm::make_local_world(ranks, hosts);
  std::vector<std::exception_ptr> outcomes(ranks);
  std::mutex mutex;
  std::condition_variable changed;
  int done = 0;
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      try {
        body(comm::Group(transports[r]));
      } catch (...) {
        outcomes[r] = std::current_exception();
        transports[r]->abort(0, comm::failure_of(outcomes[r]).message);
      }
      const std::lock_guard lock(mutex);
      ++done;
      changed.notify_all();
    });
  const auto limit = std::chrono::duration<double>(hang_limit_seconds);
  std::unique_lock lock(mutex);
  if (!changed.wait_for(lock, limit, [&] { return done == ranks; })) {
    transports[0]->abort(0, "the test's ranks hang");
    // Those that wait in a collective now throw; one that does not cannot be stopped from here.
    if (!changed.wait_for(lock, std::chrono::seconds(30), [&] { return done == ranks; })) {
      std::fputs("a rank of this test neither ends nor communicates\n", stderr);
      std::abort();
    }
  }
  lock.unlock();
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

// Rethrows what the ranks threw: the lowest rank's own error if there is one, otherwise a lost peer.
inline void rethrow_cause(const std::vector<std::exception_ptr>& outcomes) {
  std::exception_ptr lost_peer;
  for (const std::exception_ptr& outcome : outcomes) {
    if (!outcome) continue;
    if (comm::failure_of(outcome).code != static_cast<int>(ExitCode::kPeerLost)) std::rethrow_exception(outcome);
    if (!lost_peer) lost_peer = outcome;
  }
  if (lost_peer) std::rethrow_exception(lost_peer);
}

// Runs `body` on each of `ranks` threads with its group, and throws what they threw.
inline void run_ranks(int ranks, const std::function<void(comm::Group)>& body, double hang_limit_seconds = 120) {
  rethrow_cause(rank_outcomes(ranks, body, hang_limit_seconds));
}

// The same with one rank for each of `hosts`, which number the hosts that the ranks are to be on.
inline void run_ranks_on(const std::vector<int>& hosts, const std::function<void(comm::Group)>& body) {
  rethrow_cause(rank_outcomes(static_cast<int>(hosts.size()), body, 120, hosts));
}

}  // namespace conclave::test
