// SPDX-License-Identifier: Apache-2.0
#include "comm/thread_ranks.h"

#include <exception>
#include <thread>

#include "comm/failure.h"
#include "comm/local_group.h"
#include "core/error.h"

namespace conclave::comm {

void run_thread_ranks(int ranks, const std::function<void(const Group&)>& body) {
  const auto transports = make_local_world(ranks);
  std::vector<std::exception_ptr> outcomes(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        body(Group(transports[r]));
      } catch (...) {
        outcomes[r] = std::current_exception();
        transports[r]->abort(0, failure_of(outcomes[r]).message);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::exception_ptr lost_peer;
  for (const std::exception_ptr& outcome : outcomes) {
    if (!outcome) continue;
    if (failure_of(outcome).code != static_cast<int>(ExitCode::kPeerLost)) std::rethrow_exception(outcome);
    if (!lost_peer) lost_peer = outcome;
  }
  if (lost_peer) std::rethrow_exception(lost_peer);
}

}  // namespace conclave::comm
