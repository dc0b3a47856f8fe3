// SPDX-License-Identifier: Apache-2.0
#include "comm/group.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <thread>

#include "comm/private_memory.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

void copy(std::span<const std::byte> from, std::span<std::byte> to) {
  if (!from.empty() && from.data() != to.data()) std::memcpy(to.data(), from.data(), from.size());
}

// The group of one: every verb is the identity.
class SelfTransport : public Transport {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string name() const override { return "self"; }
  std::shared_ptr<Transport> split(int, int) override { return std::make_shared<SelfTransport>(); }
  void barrier() override {}
  void broadcast(std::span<std::byte>, int) override {}
  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv, std::span<const int64_t>) override {
    copy(send, recv);
  }
  void all_reduce(std::span<std::byte>, DType, Reduce) override {}
  Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t>, std::span<std::byte> recv,
                          std::span<const int64_t>) override {
    copy(send, recv);
    return {};
  }
  std::vector<int> hosts() override { return {0}; }
  std::shared_ptr<SharedMemory> share(int64_t bytes) override {
    return std::make_shared<PrivateMemory>(std::vector{make_owned_bytes(bytes)});
  }
  void wait_until(const std::function<bool()>& done) override {
    while (!done()) std::this_thread::yield();
  }
  void abort(int, const std::string& reason) override { throw CommError("{}", reason); }
};

int64_t total(std::span<const int64_t> sizes) { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }

bool are_sizes(std::span<const int64_t> sizes, int ranks) {
  return std::ssize(sizes) == ranks && std::all_of(sizes.begin(), sizes.end(), [](int64_t size) { return size >= 0; });
}

}  // namespace

size_t bytes_of(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kInt32 ? 4 : 8; }

Group::Group() : transport_(std::make_shared<SelfTransport>()) {}
Group::Group(std::shared_ptr<Transport> transport) : transport_(std::move(transport)) {
  check(transport_ != nullptr, "a group needs a transport");
}

int Group::rank() const { return transport_->rank(); }
int Group::size() const { return transport_->size(); }
std::string Group::transport_name() const { return transport_->name(); }

Group Group::split(int color, int key) const {
  check(color >= 0, "the color of a split is not negative");
  return Group(transport_->split(color, key));
}

void Group::barrier() const { transport_->barrier(); }
std::vector<int> Group::hosts() const { return transport_->hosts(); }
std::shared_ptr<SharedMemory> Group::share(int64_t bytes) const {
  check(bytes > 0, "shared memory has a size");
  return transport_->share(bytes);
}
void Group::wait_until(const std::function<bool()>& done) const { transport_->wait_until(done); }
void Group::poll() const { transport_->poll(); }
void Group::abort(int code, const std::string& reason) const { transport_->abort(code, reason); }

void Group::all_reduce(std::span<float> data, Reduce op) const {
  transport_->all_reduce(std::as_writable_bytes(data), DType::kFloat32, op);
}
void Group::all_reduce(std::span<double> data, Reduce op) const {
  transport_->all_reduce(std::as_writable_bytes(data), DType::kFloat64, op);
}
void Group::all_reduce(std::span<int32_t> data, Reduce op) const {
  transport_->all_reduce(std::as_writable_bytes(data), DType::kInt32, op);
}
void Group::all_reduce(std::span<int64_t> data, Reduce op) const {
  transport_->all_reduce(std::as_writable_bytes(data), DType::kInt64, op);
}

std::vector<std::string> Group::all_gather_text(const std::string& text) const {
  const std::vector<int64_t> sizes = all_gather_value(static_cast<int64_t>(text.size()));
  std::string all(total(sizes), '\0');
  all_gather_v(std::span<const char>(text), std::span<char>(all), std::span<const int64_t>(sizes));
  std::vector<std::string> texts;
  size_t at = 0;
  for (const int64_t size : sizes) {
    texts.push_back(all.substr(at, size));
    at += size;
  }
  return texts;
}

std::vector<int64_t> Group::scaled(std::span<const int64_t> counts, size_t item) {
  std::vector<int64_t> bytes(counts.begin(), counts.end());
  for (int64_t& count : bytes) count *= static_cast<int64_t>(item);
  return bytes;
}

void Group::broadcast_bytes(std::span<std::byte> data, int root) const {
  check(root >= 0 && root < size(), "the root of a broadcast is a rank of the group");
  transport_->broadcast(data, root);
}

void Group::all_gather_bytes(std::span<const std::byte> send, std::span<std::byte> recv,
                             std::span<const int64_t> recv_bytes) const {
  check(are_sizes(recv_bytes, size()), "all_gather: one size per rank");
  check(std::ssize(send) == recv_bytes[rank()], "all_gather: what is sent has this rank's size");
  check(std::ssize(recv) == total(recv_bytes), "all_gather: the receive buffer holds every rank's piece");
  transport_->all_gather_v(send, recv, recv_bytes);
}

Work Group::start_all_to_all_v_bytes(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                                     std::span<std::byte> recv, std::span<const int64_t> recv_bytes) const {
  check(are_sizes(send_bytes, size()) && are_sizes(recv_bytes, size()), "all_to_all: one size per rank");
  check(std::ssize(send) == total(send_bytes), "all_to_all: the send buffer is what its sizes say");
  check(std::ssize(recv) == total(recv_bytes), "all_to_all: the receive buffer is what its sizes say");
  check(send_bytes[rank()] == recv_bytes[rank()], "all_to_all: what a rank sends to itself it receives");
  return transport_->start_all_to_all_v(send, send_bytes, recv, recv_bytes);
}

}  // namespace conclave::comm
