// SPDX-License-Identifier: Apache-2.0
// The NCCL communicators of one process and their health. A thread asks them for errors that arrive while nobody calls;
// after the first one all are aborted, the newest first, so that the GPU and whoever waits for it come free, and every
// later call throws. Which operations run is nccl_transport.h's business.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/nccl_library.h"

namespace conclave::comm {

struct NcclLimits {
  double init_seconds = 120;    // until all ranks of a new communicator have met
  double finalize_seconds = 5;  // for what is under way when a communicator goes away
  double health_seconds = 0.1;  // between two looks at the communicators
};

class NcclFamily {
 public:
  NcclFamily(std::shared_ptr<NcclLibrary> library, const NcclLimits& limits);
  ~NcclFamily();
  NcclFamily(const NcclFamily&) = delete;
  NcclFamily& operator=(const NcclFamily&) = delete;

  NcclLibrary& library() { return *library_; }
  // One for all communicators: they run in the order of the calls, which is the same on every rank, so that no two of
  // them wait for each other.
  DeviceStream stream() const { return stream_; }

  // Collective; wait until all ranks have met. Throw CommError after init_seconds.
  NcclComm join(int size, int rank, const NcclId& id);
  NcclComm split(NcclComm parent, int color, int key);
  // Runs `calls` and waits until `comm` has taken them on (not until they are done on the GPU). `what` is for the
  // error.
  void issue(NcclComm comm, const char* what, const std::function<NcclState()>& calls);
  // Finalizes and frees, or aborts where that is not to be had: `orderly` is false while an exception unwinds. No
  // throw.
  void release(NcclComm comm, bool orderly);

  // Throws CommError with the first failure.
  void throw_if_failed() const;
  // Aborts all communicators, once; `reason` is what later calls throw.
  void fail(const std::string& reason);

 private:
  NcclComm settle_new(NcclComm comm, NcclState state, const std::string& what);
  // Until `comm` is done; false after `seconds` (0: never).
  bool settle(NcclComm comm, NcclState state, const std::string& what, double seconds);
  void forget(NcclComm comm);
  void fail_locked(const std::string& reason);
  void throw_if_failed_locked() const;
  void watch();

  std::shared_ptr<NcclLibrary> library_;
  NcclLimits limits_;
  DeviceStream stream_ = nullptr;
  mutable std::mutex mutex_;     // of everything below, and held in every call that names a communicator
  std::vector<NcclComm> comms_;  // oldest first
  std::string failure_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace conclave::comm
