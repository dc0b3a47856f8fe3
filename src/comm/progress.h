// SPDX-License-Identifier: Apache-2.0
// Who advances transfers that are under way. Open MPI moves no message above 64 KiB outside of its own calls, so
// somebody has to keep calling: the computing thread, which polls between its products, or a thread of its own. Knows
// no MPI: a transfer says itself how it advances.
#pragma once

#include <condition_variable>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "comm/comm_config.h"

namespace conclave::comm {

// A transfer under way. One thread at a time calls it.
class Pending {
 public:
  virtual ~Pending() = default;
  // Moves it on without waiting; true when it is complete. Throws CommError.
  virtual bool advance() = 0;
  // Returns when it is complete. Throws CommError.
  virtual void wait() = 0;
};

// The transfers of one process, over all its groups. Any thread may call.
class Progress {
 public:
  Progress() = default;  // by polling
  ~Progress();           // what is under way no longer moves
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // From now on; nothing may be under way. The thread sleeps while nothing is.
  void advance_by(ProgressBy by);

  // Takes `pending` under way. finish() or drop() ends that.
  void add(std::shared_ptr<Pending> pending);
  // Moves the oldest transfer on, and with it, in Open MPI, all others: cheap, and free when none is under way. Does
  // nothing beside a thread. What fails is thrown by finish().
  void poll();
  // Waits until `pending` is complete; throws what it met, also on the thread.
  void finish(const std::shared_ptr<Pending>& pending);
  // Lets go of a transfer that nobody will finish.
  void drop(const std::shared_ptr<Pending>& pending);

 private:
  struct Item {
    std::shared_ptr<Pending> pending;
    bool complete = false;
    std::exception_ptr error = nullptr;
  };
  // With the lock held.
  std::list<Item>::iterator find(const std::shared_ptr<Pending>& pending);
  void advance(Item& item);
  void run();
  void stop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Item> items_;  // oldest first
  int incomplete_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace conclave::comm
