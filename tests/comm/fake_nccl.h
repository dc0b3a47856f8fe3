// SPDX-License-Identifier: Apache-2.0
// NCCL and streams made up: ranks are threads, GPU memory is registered heap memory, and a stream is a queue that runs
// when somebody waits for it. So what reads a result without waiting for it finds it missing, and calls can be made to
// take time, to fail or to never end.
#pragma once

#include <fmt/format.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "comm/local_group.h"
#include "comm/nccl_library.h"
#include "comm/staged_transport.h"
#include "core/error.h"

namespace conclave::test {

// Where the ranks of a job find each other: one world of threads for each id.
class FakeFabric {
 public:
  std::shared_ptr<comm::Transport> join(const comm::NcclId& id, int size, int rank) {
    const std::lock_guard lock(mutex_);
    auto& world = worlds_[id.bytes];
    if (world.empty()) world = comm::make_local_world(size);
    return world[rank];
  }
  comm::NcclId make_id() {
    const std::lock_guard lock(mutex_);
    comm::NcclId id;
    id.bytes[0] = static_cast<char>(++made_);
    return id;
  }
  // Messages from one rank of a communicator to another arrive in their order. `place` names all three.
  void post(const std::string& place, std::span<const std::byte> data) {
    const std::lock_guard lock(mutex_);
    letters_[place].emplace_back(data.begin(), data.end());
    changed_.notify_all();
  }
  void take(const std::string& place, std::span<std::byte> data) {
    std::unique_lock lock(mutex_);
    auto& letters = letters_[place];
    if (!changed_.wait_for(lock, std::chrono::seconds(60), [&] { return !letters.empty(); }))
      throw CommError("no message {}", place);
    check(letters.front().size() == data.size(), "a message has the size that is waited for");
    std::copy(letters.front().begin(), letters.front().end(), data.begin());
    letters.pop_front();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::deque<std::vector<std::byte>>> letters_;
  std::map<std::array<char, 128>, std::vector<std::shared_ptr<comm::Transport>>> worlds_;
  int made_ = 0;
};

struct FakeStream {
  std::deque<std::function<void()>> queue;
  int64_t given = 0, done = 0;
  // Runs what it was given up to number `until`.
  void run(int64_t until) {
    while (done < until && !queue.empty()) {
      const auto next = std::move(queue.front());
      queue.pop_front();
      ++done;
      next();
    }
  }
  void push(std::function<void()> what) {
    queue.push_back(std::move(what));
    ++given;
  }
};

struct FakeEvent {
  FakeStream* stream = nullptr;
  int64_t at = 0;
};

struct FakeComm {
  std::string name;
  std::shared_ptr<comm::Transport> ranks;
  int splits = 0;
  int looks = 0;  // how often its state is still "in progress"
  std::atomic<bool> failed{false};
  std::atomic<bool> hangs{false};
};

class FakeNccl : public comm::NcclLibrary, public DeviceBuffers {
 public:
  using State = comm::NcclState;
  explicit FakeNccl(std::shared_ptr<FakeFabric> fabric) : fabric_(std::move(fabric)) {}

  // --- what tests set and read
  int looks_per_call = 0;      // every call is in progress for as many looks
  bool meetings_hang = false;  // init never ends
  std::vector<std::string> calls() const {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  // In the order in which they were made.
  FakeComm& communicator(size_t number) {
    const std::lock_guard lock(mutex_);
    return *comms_[number];
  }
  bool fails_next_call = false;  // a send or broadcast
  bool is_eager = false;         // the communication stream runs at once, as far as it may

  // --- NcclLibrary
  comm::NcclId make_id() override { return fabric_->make_id(); }
  State init(comm::NcclComm& comm, int size, int rank, const comm::NcclId& id) override {
    note("init");
    return begin_life(comm, fmt::format("world {}", id.bytes[0] + 0), fabric_->join(id, size, rank));
  }
  State split(comm::NcclComm parent, int color, int key, comm::NcclComm& part) override {
    note("split");
    FakeComm& from = of(parent);
    begin_life(part, fmt::format("{}/{}:{}", from.name, from.splits++, color), from.ranks->split(color, key));
    return busy(from);
  }
  State state_of(comm::NcclComm comm) override {
    FakeComm& c = of(comm);
    if (c.failed) return State::kFailed;
    if (c.hangs || c.looks-- > 0) return State::kInProgress;
    c.looks = 0;
    return State::kDone;
  }
  std::string error_of(comm::NcclComm) override { return "the fabric is torn"; }
  State finalize(comm::NcclComm comm) override {
    note("finalize " + of(comm).name);
    return busy(of(comm));
  }
  void destroy(comm::NcclComm comm) override { note("destroy " + of(comm).name); }
  // Peers that wait for this rank come free with an error.
  void abort(comm::NcclComm comm) override {
    note("abort " + of(comm).name);
    of(comm).ranks->abort(0, "the communicator was aborted");
  }

  State begin() override {
    note("begin");
    in_batch_ = true;
    batch_ = std::make_shared<Batch>();
    return State::kDone;
  }
  State end() override {
    note("end");
    in_batch_ = false;
    if (batch_->place.comm == nullptr) return State::kDone;
    FakeComm& comm = of(batch_->place.comm);
    give(batch_->place.stream, [this, batch = batch_, &comm] { run_batch(*batch, comm); });
    return busy(comm);
  }
  State send(comm::NcclPlace place, std::span<const std::byte> data, int to) override {
    note(fmt::format("send {} to {}", data.size(), to));
    if (std::exchange(fails_next_call, false)) return State::kFailed;
    batch_->place = place;
    batch_->sends.push_back({data, to});
    return State::kDone;
  }
  State receive(comm::NcclPlace place, std::span<std::byte> data, int from) override {
    note(fmt::format("receive {} from {}", data.size(), from));
    batch_->place = place;
    batch_->receives.push_back({data, from});
    return State::kDone;
  }
  State broadcast(comm::NcclPlace place, std::span<std::byte> data, int root) override {
    if (std::exchange(fails_next_call, false)) return State::kFailed;
    return run(place, [=](comm::Transport& ranks) { ranks.broadcast(data, root); });
  }
  State all_gather(comm::NcclPlace place, std::span<const std::byte> send, std::span<std::byte> recv) override {
    note("all_gather");
    return run(place, [=](comm::Transport& ranks) {
      const std::vector<int64_t> sizes(ranks.size(), std::ssize(send));
      ranks.all_gather_v(send, recv, sizes);
    });
  }
  State all_reduce(comm::NcclPlace place, std::span<std::byte> data, comm::DType dtype, comm::Reduce op) override {
    return run(place, [=](comm::Transport& ranks) { ranks.all_reduce(data, dtype, op); });
  }

  bool is_device_memory(const void* address) override {
    const auto next = owned_.upper_bound(static_cast<const std::byte*>(address));
    if (next == owned_.begin()) return false;
    const auto& [start, bytes] = *std::prev(next);
    return address < start + bytes.size();
  }
  comm::DeviceStream compute_stream() override { return &compute_; }
  comm::DeviceStream make_stream() override { return &communication_; }
  void destroy_stream(comm::DeviceStream) override {}
  comm::DeviceEvent make_event() override {
    ++live_events;
    return new FakeEvent;
  }
  void destroy_event(comm::DeviceEvent event) override {
    --live_events;
    delete static_cast<FakeEvent*>(event);
  }
  void record(comm::DeviceEvent event, comm::DeviceStream stream) override {
    *static_cast<FakeEvent*>(event) = {&stream_of(stream), stream_of(stream).given};
  }
  void wait(comm::DeviceStream stream, comm::DeviceEvent event) override {
    stream_of(stream).push([seen = *static_cast<FakeEvent*>(event)] { seen.stream->run(seen.at); });
  }
  void copy(std::span<const std::byte> from, std::byte* to, comm::DeviceStream stream) override {
    stream_of(stream).push([=] { std::copy(from.begin(), from.end(), to); });
  }
  int live_events = 0;

  // --- DeviceBuffers: given to the compute stream, as a kernel would be
  std::span<std::byte> allocate(int64_t bytes) override {
    std::vector<std::byte> memory(bytes);
    const std::span<std::byte> span(memory);
    if (bytes > 0) owned_.emplace(memory.data(), std::move(memory));
    return span;
  }
  void release(std::span<std::byte> data) override { owned_.erase(data.data()); }
  void to_device(std::span<const std::byte> from, std::span<std::byte> to) override {
    compute_.push([kept = std::vector<std::byte>(from.begin(), from.end()), to] {
      std::copy(kept.begin(), kept.end(), to.begin());
    });
  }
  void to_host(std::span<const std::byte> from, std::span<std::byte> to) override {
    compute_.run(compute_.given);
    std::copy(from.begin(), from.end(), to.begin());
  }

 private:
  struct Batch {
    struct Outgoing {
      std::span<const std::byte> data;
      int to;
    };
    struct Incoming {
      std::span<std::byte> data;
      int from;
    };
    comm::NcclPlace place;
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    std::vector<std::function<void(comm::Transport&)>> others;
  };

  void run_batch(const Batch& batch, FakeComm& comm) {
    for (const auto& other : batch.others) other(*comm.ranks);
    const auto place = [&](int from, int to) { return fmt::format("{} {}>{}", comm.name, from, to); };
    const int own = comm.ranks->rank();
    for (const auto& out : batch.sends) fabric_->post(place(own, out.to), out.data);
    for (const auto& in : batch.receives) fabric_->take(place(in.from, own), in.data);
  }
  void give(comm::DeviceStream stream, std::function<void()> what) {
    FakeStream& s = stream_of(stream);
    s.push(std::move(what));
    if (is_eager) s.run(s.given);
  }

  State begin_life(comm::NcclComm& comm, const std::string& name, std::shared_ptr<comm::Transport> ranks) {
    const std::lock_guard lock(mutex_);
    comms_.push_back(std::make_unique<FakeComm>());
    comms_.back()->name = name;
    comms_.back()->ranks = std::move(ranks);
    comms_.back()->hangs = meetings_hang;
    comm = comms_.back().get();
    return busy(*comms_.back());
  }
  State busy(FakeComm& comm) {
    comm.looks = looks_per_call;
    return looks_per_call > 0 || comm.hangs ? State::kInProgress : State::kDone;
  }
  State run(comm::NcclPlace place, std::function<void(comm::Transport&)> what) {
    if (in_batch_) {
      batch_->place = place;
      batch_->others.push_back(std::move(what));
      return State::kDone;
    }
    FakeComm& comm = of(place.comm);
    give(place.stream, [what = std::move(what), ranks = comm.ranks] { what(*ranks); });
    return busy(comm);
  }
  void note(const std::string& call) {
    const std::lock_guard lock(mutex_);
    calls_.push_back(call);
  }
  static FakeComm& of(comm::NcclComm comm) { return *static_cast<FakeComm*>(comm); }
  static FakeStream& stream_of(comm::DeviceStream stream) { return *static_cast<FakeStream*>(stream); }

  std::shared_ptr<FakeFabric> fabric_;
  mutable std::mutex mutex_;
  std::vector<std::string> calls_;
  std::vector<std::unique_ptr<FakeComm>> comms_;
  std::map<const std::byte*, std::vector<std::byte>> owned_;
  FakeStream compute_, communication_;
  std::shared_ptr<Batch> batch_;
  bool in_batch_ = false;
};

}  // namespace conclave::test
