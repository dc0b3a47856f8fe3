// SPDX-License-Identifier: Apache-2.0
// Asks every rank of a job what it is doing, apart from MPI, which may be what hangs: one UDP socket each, answered by
// a thread of its own. A process that is stopped, dead or cut off does not answer. It does not judge; the watchdog
// does.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/activity.h"
#include "comm/group.h"

namespace conclave::comm {

class RollCall {
 public:
  struct Answer {
    bool present = false;  // the fields below mean nothing without
    int64_t step = 0;
    std::string operation;
    std::string collective;  // empty: outside of collectives
  };

  // Collective. Answers until it is destroyed. `hosts` is by rank. Throws CommError where no socket can be had.
  RollCall(const Group& group, std::vector<std::string> hosts, std::shared_ptr<const Activity> activity);
  ~RollCall();
  RollCall(const RollCall&) = delete;
  RollCall& operator=(const RollCall&) = delete;

  // By rank, when all have answered or `seconds` are over. Not collective; any thread, MPI or not.
  std::vector<Answer> ask(double seconds) const;

  int rank() const;
  const std::vector<std::string>& hosts() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Who holds the others up, as sentences for the user: ranks without an answer, else ranks outside of collectives, else
// ranks in another collective or step than most. `hosts` is by rank.
std::string describe_absence(const std::vector<RollCall::Answer>& answers, const std::vector<std::string>& hosts);

}  // namespace conclave::comm
