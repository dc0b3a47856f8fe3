// SPDX-License-Identifier: Apache-2.0
#include "comm/progress.h"

#include <sched.h>

#include <algorithm>

#include "core/error.h"

namespace conclave::comm {

Progress::~Progress() { stop(); }

void Progress::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  stopping_ = false;
}

void Progress::advance_by(ProgressBy by) {
  {
    const std::lock_guard lock(mutex_);
    check(items_.empty(), "who advances transfers changes while none is under way");
  }
  stop();
  if (by == ProgressBy::kThread) thread_ = std::thread([this] { run(); });
}

std::list<Progress::Item>::iterator Progress::find(const std::shared_ptr<Pending>& pending) {
  const auto found = std::find_if(items_.begin(), items_.end(), [&](const Item& i) { return i.pending == pending; });
  check(found != items_.end(), "a transfer is finished once");
  return found;
}

void Progress::add(std::shared_ptr<Pending> pending) {
  {
    const std::lock_guard lock(mutex_);
    items_.push_back({.pending = std::move(pending)});
    ++incomplete_;
  }
  changed_.notify_all();
}

void Progress::advance(Item& item) {
  try {
    item.complete = item.pending->advance();
  } catch (...) {
    item.error = std::current_exception();
    item.complete = true;
  }
  if (item.complete) --incomplete_;
}

void Progress::poll() {
  if (thread_.joinable()) return;
  const std::lock_guard lock(mutex_);
  if (incomplete_ == 0) return;
  advance(*std::find_if(items_.begin(), items_.end(), [](const Item& item) { return !item.complete; }));
}

void Progress::finish(const std::shared_ptr<Pending>& pending) {
  std::unique_lock lock(mutex_);
  const auto item = find(pending);
  if (thread_.joinable()) {
    changed_.wait(lock, [&] { return item->complete; });
  } else if (!item->complete) {
    lock.unlock();
    std::exception_ptr error;
    try {
      pending->wait();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    item->error = error;
    --incomplete_;
  }
  const std::exception_ptr error = item->error;
  items_.erase(item);
  if (error) std::rethrow_exception(error);
}

void Progress::drop(const std::shared_ptr<Pending>& pending) {
  const std::lock_guard lock(mutex_);
  const auto item = find(pending);
  if (!item->complete) --incomplete_;
  items_.erase(item);
}

// MPI_Test with sched_yield hides as much as polling does; MPI_Wait in the thread hides half of that, since it keeps a
// core from the computation.
void Progress::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || incomplete_ > 0; });
    if (stopping_) return;
    const int before = incomplete_;
    for (Item& item : items_)
      if (!item.complete) advance(item);
    if (incomplete_ < before) changed_.notify_all();
    lock.unlock();
    sched_yield();
    lock.lock();
  }
}

}  // namespace conclave::comm
