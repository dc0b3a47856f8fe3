// SPDX-License-Identifier: Apache-2.0
#include "comm/local_group.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "core/error.h"

namespace conclave::comm {
namespace {

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
};

// The meeting point of one group. Operations are numbered in the order of the calls, which is the same on every rank.
class Hub {
 public:
  Hub(std::shared_ptr<Meeting> meeting, std::vector<int> world_ranks)
      : meeting_(std::move(meeting)), world_ranks_(std::move(world_ranks)) {}

  int size() const { return static_cast<int>(world_ranks_.size()); }
  int world_rank(int rank) const { return world_ranks_[rank]; }

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

template <typename T>
T reduced(T a, T b, Reduce op) {
  switch (op) {
    case Reduce::kSum:
      return a + b;
    case Reduce::kMin:
      return std::min(a, b);
    case Reduce::kMax:
      return std::max(a, b);
  }
  throw BugError("internal error: unknown reduction");
}

// Elements [begin, end) of every rank's buffer become their reduction in rank order.
template <typename T>
void reduce_range(const std::vector<Posting>& postings, int64_t begin, int64_t end, Reduce op) {
  for (int64_t i = begin; i < end; ++i) {
    T sum = reinterpret_cast<const T*>(postings[0].data)[i];
    for (size_t r = 1; r < postings.size(); ++r)
      sum = reduced(sum, reinterpret_cast<const T*>(postings[r].data)[i], op);
    for (const Posting& posting : postings) reinterpret_cast<T*>(posting.data)[i] = sum;
  }
}

void reduce_range(DType dtype, const std::vector<Posting>& postings, int64_t begin, int64_t end, Reduce op) {
  switch (dtype) {
    case DType::kFloat32:
      return reduce_range<float>(postings, begin, end, op);
    case DType::kFloat64:
      return reduce_range<double>(postings, begin, end, op);
    case DType::kInt32:
      return reduce_range<int32_t>(postings, begin, end, op);
    case DType::kInt64:
      return reduce_range<int64_t>(postings, begin, end, op);
  }
}

void copy_bytes(std::byte* to, const std::byte* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

// The receiving half of an all-to-all.
void receive_pieces(Visit& visit, std::byte* to, const std::vector<int64_t>& expected) {
  const Operation& operation = visit.enter();
  const int rank = visit.rank();
  for (size_t r = 0; r < expected.size(); ++r) {
    const std::vector<int64_t>& sizes = operation.postings[r].numbers;
    if (sizes[rank] != expected[r]) {
      const BugError error("internal error: all_to_all: rank {} sends {} bytes to rank {}, which expects {}", r,
                           sizes[rank], rank, expected[r]);
      visit.hub().fail(error.what());
      throw error;
    }
    const int64_t skipped = std::accumulate(sizes.begin(), sizes.begin() + rank, int64_t{0});
    copy_bytes(to, operation.postings[r].send + skipped, expected[r]);
    to += expected[r];
  }
  visit.finish();
}

class LocalTransport : public Transport {
 public:
  LocalTransport(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return hub_->size(); }
  std::string name() const override { return "threads"; }

  std::shared_ptr<Transport> split(int color, int key) override {
    const auto visit = start("split", {.numbers = {color, key}});
    Operation& operation = visit->enter();
    std::vector<int> members;
    for (int r = 0; r < size(); ++r)
      if (operation.postings[r].numbers[0] == color) members.push_back(r);
    std::stable_sort(members.begin(), members.end(),
                     [&](int a, int b) { return operation.postings[a].numbers[1] < operation.postings[b].numbers[1]; });
    auto part = hub_->part(operation, color, members);
    const auto place = std::find(members.begin(), members.end(), rank_) - members.begin();
    visit->finish();
    return std::make_shared<LocalTransport>(std::move(part), static_cast<int>(place));
  }

  void barrier() override {
    const auto visit = start("barrier", {});
    visit->enter();
    visit->finish();
  }

  void broadcast(std::span<std::byte> data, int root) override {
    const auto visit = start(fmt::format("broadcast({} bytes from {})", data.size(), root), {.data = data.data()});
    copy_bytes(data.data(), visit->enter().postings[root].data, std::ssize(data));
    visit->finish();
  }

  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    const auto visit = start(fmt::format("all_gather({} bytes)", fmt::join(recv_bytes, ", ")), {.send = send.data()});
    const Operation& operation = visit->enter();
    std::byte* to = recv.data();
    for (int r = 0; r < size(); ++r) {
      copy_bytes(to, operation.postings[r].send, recv_bytes[r]);
      to += recv_bytes[r];
    }
    visit->finish();
  }

  void all_reduce(std::span<std::byte> data, DType dtype, Reduce op) override {
    const auto call = fmt::format("all_reduce({} bytes, type {}, operation {})", data.size(), static_cast<int>(dtype),
                                  static_cast<int>(op));
    const auto visit = start(call, {.data = data.data()});
    // Each rank reduces its share of the elements for everybody: no scratch memory, and no two ranks touch one element.
    const int64_t elements = std::ssize(data) / static_cast<int64_t>(bytes_of(dtype));
    reduce_range(dtype, visit->enter().postings, elements * rank_ / size(), elements * (rank_ + 1) / size(), op);
    visit->finish();
  }

  Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                          std::span<std::byte> recv, std::span<const int64_t> recv_bytes) override {
    auto visit = start("all_to_all", {.send = send.data(), .numbers = {send_bytes.begin(), send_bytes.end()}});
    std::vector<int64_t> expected(recv_bytes.begin(), recv_bytes.end());
    return Work([visit = std::move(visit), to = recv.data(), expected = std::move(expected)] {
      receive_pieces(*visit, to, expected);
    });
  }

  void abort(int, const std::string& reason) override {
    hub_->fail(fmt::format("rank {} failed: {}", hub_->world_rank(rank_), reason));
  }

 private:
  std::shared_ptr<Visit> start(const std::string& call, Posting posting) {
    return std::make_shared<Visit>(hub_, next_++, rank_, call, std::move(posting));
  }

  std::shared_ptr<Hub> hub_;
  int rank_;
  int64_t next_ = 0;
};

}  // namespace

std::vector<std::shared_ptr<Transport>> make_local_world(int size) {
  check(size >= 1, "a world has at least one rank");
  std::vector<int> ranks(size);
  for (int r = 0; r < size; ++r) ranks[r] = r;
  const auto hub = std::make_shared<Hub>(std::make_shared<Meeting>(), ranks);
  std::vector<std::shared_ptr<Transport>> transports;
  for (const int rank : ranks) transports.push_back(std::make_shared<LocalTransport>(hub, rank));
  return transports;
}

}  // namespace conclave::comm
