// SPDX-License-Identifier: Apache-2.0
// Where rank threads meet: numbered operations, failure that wakes everybody, and the rule that nobody's buffer goes
// away while another reads it. Private to local_group.cpp, which turns it into verbs.
#pragma once

#include <fmt/format.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/error.h"

namespace conclave::comm::local {

// What one rank brings to an operation. The pointers stay valid until every rank has left the operation.
struct Posting {
  std::byte* data = nullptr;        // broadcast, all_reduce
  const std::byte* send = nullptr;  // all_gather, all_to_all
  std::vector<int64_t> numbers{};   // all_to_all: bytes per receiver; split: color and key
};

class Hub;

// One collective call, seen by all ranks of a group.
struct Operation {
  std::string call;  // verb and size, which must be the same on all ranks
  int first_rank = 0;
  std::vector<Posting> postings;
  int posted = 0;
  int inside = 0;  // ranks that are reading the others' buffers now
  int left = 0;
  std::map<int, std::shared_ptr<Hub>> parts;  // split: the new groups by color
};

// Shared by all groups of one world, so that one failure wakes every waiting rank wherever it waits.
struct Meeting {
  std::mutex mutex;
  std::condition_variable changed;
  std::string failure;
  std::vector<int> hosts;  // of each rank of the world
};

// The meeting point of one group. Operations are numbered in the order of the calls, which is the same on every rank.
class Hub {
 public:
  Hub(std::shared_ptr<Meeting> meeting, std::vector<int> world_ranks)
      : meeting_(std::move(meeting)), world_ranks_(std::move(world_ranks)) {}

  int size() const { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int rank) const { return world_ranks_[rank]; }
  int host(int rank) const { return meeting_->hosts[world_ranks_[rank]]; }

  void throw_if_lost() const {
    const std::lock_guard lock(meeting_->mutex);
    throw_if_failed();
  }

  void fail(const std::string& reason) {
    const std::lock_guard lock(meeting_->mutex);
    fail_locked(reason);
  }

  void post(int64_t number, int rank, const std::string& call, Posting posting) {
    const std::lock_guard lock(meeting_->mutex);
    throw_if_failed();
    Operation& operation = operations_[number];
    if (operation.posted == 0) {
      operation.call = call;
      operation.first_rank = rank;
      operation.postings.resize(size());
    } else if (operation.call != call) {
      const BugError error("internal error: collective {} of a group of {}: rank {} calls {}, rank {} calls {}", number,
                           size(), operation.first_rank, operation.call, rank, call);
      fail_locked(error.what());
      throw error;
    }
    operation.postings[rank] = std::move(posting);
    if (++operation.posted == size()) meeting_->changed.notify_all();
  }

  // Waits until every rank has posted, then lets this rank in: it may read everybody's buffers until exit(). The
  // reference is good as long.
  Operation& enter(int64_t number) {
    std::unique_lock lock(meeting_->mutex);
    Operation& operation = operations_.at(number);
    meeting_->changed.wait(lock, [&] { return operation.posted == size() || !meeting_->failure.empty(); });
    if (!meeting_->failure.empty()) wait_for_readers_and_throw(lock, operation);
    ++operation.inside;
    return operation;
  }

  // Waits until every rank is done with everybody's buffers.
  void exit(int64_t number) {
    std::unique_lock lock(meeting_->mutex);
    Operation& operation = operations_.at(number);
    --operation.inside;
    ++operation.left;
    meeting_->changed.notify_all();
    meeting_->changed.wait(lock, [&] { return operation.left >= size() || !meeting_->failure.empty(); });
    if (operation.left < size()) wait_for_readers_and_throw(lock, operation);
    // Each rank counts itself out a second time; the last one clears the table.
    if (++operation.left == 2 * size()) operations_.erase(number);
  }

  // A rank that fails in the middle takes its buffers along, but not before the others have stopped reading them.
  void withdraw(int64_t number, int rank, bool is_inside) {
    std::unique_lock lock(meeting_->mutex);
    Operation& operation = operations_.at(number);
    if (is_inside) --operation.inside;
    fail_locked(fmt::format("rank {} left {} unfinished", world_rank(rank), operation.call));
    meeting_->changed.wait(lock, [&] { return operation.inside == 0; });
  }

  std::shared_ptr<Hub> part(Operation& operation, int color, const std::vector<int>& members) {
    const std::lock_guard lock(meeting_->mutex);
    std::shared_ptr<Hub>& hub = operation.parts[color];
    if (!hub) {
      std::vector<int> world_ranks;
      for (const int member : members) world_ranks.push_back(world_ranks_[member]);
      hub = std::make_shared<Hub>(meeting_, world_ranks);
    }
    return hub;
  }

 private:
  void fail_locked(const std::string& reason) {
    if (meeting_->failure.empty()) meeting_->failure = reason;
    meeting_->changed.notify_all();
  }
  void throw_if_failed() const {
    if (!meeting_->failure.empty()) throw CommError("{}", meeting_->failure);
  }
  void wait_for_readers_and_throw(std::unique_lock<std::mutex>& lock, const Operation& operation) {
    meeting_->changed.wait(lock, [&] { return operation.inside == 0; });
    throw_if_failed();
  }

  std::shared_ptr<Meeting> meeting_;
  std::vector<int> world_ranks_;
  std::map<int64_t, Operation> operations_;
};

// One rank's part in one operation, from its posting on. Destroyed before finish() it withdraws and fails the world.
class Visit {
 public:
  Visit(std::shared_ptr<Hub> hub, int64_t number, int rank, const std::string& call, Posting posting)
      : hub_(std::move(hub)), number_(number), rank_(rank) {
    hub_->post(number_, rank_, call, std::move(posting));
  }
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  ~Visit() {
    if (state_ != kDone) hub_->withdraw(number_, rank_, state_ == kInside);
  }
  Hub& hub() { return *hub_; }
  int rank() const { return rank_; }
  Operation& enter() {
    Operation& operation = hub_->enter(number_);
    state_ = kInside;
    return operation;
  }
  void finish() {
    state_ = kDone;
    hub_->exit(number_);
  }

 private:
  enum State { kPosted, kInside, kDone };
  std::shared_ptr<Hub> hub_;
  int64_t number_;
  int rank_;
  State state_ = kPosted;
};

}  // namespace conclave::comm::local
