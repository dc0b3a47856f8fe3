// SPDX-License-Identifier: Apache-2.0
// The rendezvous: who takes part, on which host, with how many cores, over which transport, and how the job ends when
// one of them fails. Under mpirun (or a launcher that speaks PMI) the ranks are its processes; otherwise the world is
// this process alone and MPI is never touched.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/activity.h"
#include "comm/failure.h"
#include "comm/group.h"
#include "comm/mpi_group.h"
#include "comm/roll_call.h"

namespace conclave::comm {

// Made once, in main. Outlives every group it gives out.
class World {
 public:
  World();  // collective; throws CommError
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return group_.rank(); }
  int size() const { return group_.size(); }
  const std::vector<std::string>& hosts() const { return hosts_; }  // by rank
  int local_rank() const { return local_rank_; }                    // among the ranks of this host
  int local_size() const { return local_size_; }
  // Cores that belong to this rank: its CPU set, shared evenly with the ranks of this host that were given the same
  // set.
  int cores() const { return cores_; }

  // All ranks, over `backend` (auto, mpi, nccl; the configuration's comm.backend). Collective. Throws ConfigError for
  // one that is unknown or not built in.
  Group group(const std::string& backend = "auto") const;
  // Who advances the transfers of all groups from now on (comm.progress); at first the one who polls. Nothing may be
  // under way.
  void advance_by(ProgressBy by) { progress_->advance_by(by); }

  // What this rank is doing in any of these groups, and whom to ask what the others do (null for one rank): for the
  // watchdog.
  std::shared_ptr<Activity> activity() const { return activity_; }
  const RollCall* roll_call() const { return roll_call_.get(); }

  // Runs this rank's part and returns the process's exit code. When `body` throws on every rank, rank 0 prints and all
  // return; when it throws on some, the lowest of them prints one block and ends the job, within seconds, with the code
  // of its error.
  int run(const std::function<int()>& body);

 private:
  int end_failed(const Failure& own);

  std::unique_ptr<MpiSession> session_;  // first in, last out
  std::unique_ptr<MpiFailureExchange> exchange_;
  std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
  std::shared_ptr<Activity> activity_ = std::make_shared<Activity>();
  Group group_;
  std::vector<std::string> hosts_;
  std::unique_ptr<RollCall> roll_call_;
  int local_rank_ = 0;
  int local_size_ = 1;
  int cores_ = 1;
};

// main: joins the world and runs `body` in it (see World::run); also reports that there is no world to join.
int run_world(const std::function<int(World&)>& body);

}  // namespace conclave::comm
