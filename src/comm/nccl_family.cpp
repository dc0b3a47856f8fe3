// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_family.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace conclave::comm {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// Most calls are done at once; a communicator's first messages to a peer take until that peer connects as well.
constexpr auto kBetweenLooks = std::chrono::microseconds(20);

}  // namespace

NcclFamily::NcclFamily(std::shared_ptr<NcclLibrary> library, const NcclLimits& limits)
    : library_(std::move(library)), limits_(limits), stream_(library_->make_stream()) {
  thread_ = std::thread([this] { watch(); });
}

NcclFamily::~NcclFamily() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
  library_->destroy_stream(stream_);
}

void NcclFamily::watch() {
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, Seconds(limits_.health_seconds), [&] { return stopping_; })) {
    for (const NcclComm comm : comms_) {
      if (library_->state_of(comm) != NcclState::kFailed) continue;
      fail_locked(fmt::format("NCCL met an error while nobody called it: {}", library_->error_of(comm)));
      break;
    }
  }
}

NcclComm NcclFamily::join(int size, int rank, const NcclId& id) {
  std::unique_lock lock(mutex_);
  throw_if_failed_locked();
  NcclComm comm = nullptr;
  const NcclState state = library_->init(comm, size, rank, id);
  if (comm != nullptr) comms_.push_back(comm);
  lock.unlock();
  return settle_new(comm, state, fmt::format("rank {} joining a group of {}", rank, size));
}

// The parent is busy as long as the split is, so it is the one that is asked; the part is set by then.
NcclComm NcclFamily::split(NcclComm parent, int color, int key) {
  NcclComm part = nullptr;
  std::unique_lock lock(mutex_);
  throw_if_failed_locked();
  const NcclState state = library_->split(parent, color, key, part);
  lock.unlock();
  settle_new(parent, state, "a split");
  check(part != nullptr, "NCCL returns a communicator for every color");
  lock.lock();
  throw_if_failed_locked();
  comms_.push_back(part);
  lock.unlock();
  return settle_new(part, NcclState::kInProgress, "a split");
}

NcclComm NcclFamily::settle_new(NcclComm comm, NcclState state, const std::string& what) {
  if (settle(comm, state, what, limits_.init_seconds)) return comm;
  fail(
      fmt::format("NCCL: {}: not all ranks have met within {:g} s. Is a rank without a working GPU, or is the network "
                  "between the hosts closed? NCCL_DEBUG=INFO tells more, NCCL_SOCKET_IFNAME names the interface",
                  what, limits_.init_seconds));
  throw_if_failed();
  return nullptr;
}

bool NcclFamily::settle(NcclComm comm, NcclState state, const std::string& what, double seconds) {
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      throw_if_failed_locked();
      if (state == NcclState::kInProgress) state = library_->state_of(comm);
      if (state == NcclState::kFailed) {
        fail_locked(fmt::format("NCCL: {} failed: {}", what, library_->error_of(comm)));
        throw_if_failed_locked();
      }
    }
    if (state == NcclState::kDone) return true;
    if (seconds > 0 && Clock::now() >= end) return false;
    std::this_thread::sleep_for(kBetweenLooks);
  }
}

// Without a deadline of its own: a peer that does not come is the watchdog's to name.
void NcclFamily::issue(NcclComm comm, const char* what, const std::function<NcclState()>& calls) {
  std::unique_lock lock(mutex_);
  throw_if_failed_locked();
  const NcclState state = calls();
  lock.unlock();
  settle(comm, state, what, 0);
}

void NcclFamily::release(NcclComm comm, bool orderly) {
  try {
    std::unique_lock lock(mutex_);
    if (!failure_.empty()) return;  // aborted with all others
    if (orderly) {
      const NcclState state = library_->finalize(comm);
      lock.unlock();
      orderly = settle(comm, state, "the end of a group", limits_.finalize_seconds);
      lock.lock();
    }
    if (!failure_.empty()) return;
    forget(comm);
    if (orderly)
      library_->destroy(comm);
    else
      library_->abort(comm);
  } catch (const CommError&) {
    // The failure is kept and thrown by the next call; a destructor has nobody to tell.
  }
}

void NcclFamily::forget(NcclComm comm) { comms_.erase(std::remove(comms_.begin(), comms_.end(), comm), comms_.end()); }

void NcclFamily::throw_if_failed() const {
  const std::lock_guard lock(mutex_);
  throw_if_failed_locked();
}

void NcclFamily::throw_if_failed_locked() const {
  if (!failure_.empty()) throw CommError("{}", failure_);
}

void NcclFamily::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  fail_locked(reason);
}

// The newest first: a split may share the resources of what it was split from.
void NcclFamily::fail_locked(const std::string& reason) {
  if (!failure_.empty()) return;
  failure_ = reason;
  for (auto comm = comms_.rbegin(); comm != comms_.rend(); ++comm) library_->abort(*comm);
  comms_.clear();
}

}  // namespace conclave::comm
