// SPDX-License-Identifier: Apache-2.0
#include "comm/local_group.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "comm/local_meeting.h"
#include "comm/private_memory.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

using local::Hub;
using local::Meeting;
using local::Operation;
using local::Posting;
using local::Visit;

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

  std::vector<int> hosts() override {
    std::vector<int> first(size());
    for (int r = 0; r < size(); ++r)
      for (first[r] = 0; hub_->host(first[r]) != hub_->host(r);) ++first[r];
    return first;
  }

  std::shared_ptr<SharedMemory> share(int64_t bytes) override {
    auto own = make_owned_bytes(bytes);
    const auto visit = start(fmt::format("share({} bytes)", bytes), {.data = reinterpret_cast<std::byte*>(&own)});
    const Operation& operation = visit->enter();
    std::vector<std::shared_ptr<OwnedBytes>> all;
    for (int r = 0; r < size(); ++r)
      all.push_back(*reinterpret_cast<const std::shared_ptr<OwnedBytes>*>(operation.postings[r].data));
    visit->finish();
    return std::make_shared<PrivateMemory>(std::move(all));
  }

  void wait_until(const std::function<bool()>& done) override {
    constexpr int kLooksBetweenChecks = 64;
    for (int looks = 1; !done(); ++looks) {
      if (looks % kLooksBetweenChecks == 0) hub_->throw_if_lost();
      std::this_thread::yield();
    }
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

std::vector<std::shared_ptr<Transport>> make_local_world(int size, std::vector<int> hosts) {
  check(size >= 1, "a world has at least one rank");
  check(hosts.empty() || std::ssize(hosts) == size, "one host per rank");
  std::vector<int> ranks(size);
  for (int r = 0; r < size; ++r) ranks[r] = r;
  hosts.resize(size);
  const auto meeting = std::make_shared<Meeting>();
  meeting->hosts = std::move(hosts);
  const auto hub = std::make_shared<Hub>(meeting, ranks);
  std::vector<std::shared_ptr<Transport>> transports;
  for (const int rank : ranks) transports.push_back(std::make_shared<LocalTransport>(hub, rank));
  return transports;
}

}  // namespace conclave::comm
