// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "core/error.h"

namespace conclave::comm {
namespace {

// Owns a communicator.
class Communicator {
 public:
  Communicator(std::shared_ptr<NcclFamily> family, NcclComm comm)
      : family_(std::move(family)), comm_(comm), unwinding_(std::uncaught_exceptions()) {}
  ~Communicator() { family_->release(comm_, std::uncaught_exceptions() == unwinding_); }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  NcclComm get() const { return comm_; }

 private:
  std::shared_ptr<NcclFamily> family_;
  NcclComm comm_;
  int unwinding_;
};

// A point in a stream.
class Mark {
 public:
  Mark(std::shared_ptr<NcclFamily> family, DeviceStream stream)
      : family_(std::move(family)), event_(family_->library().make_event()) {
    family_->library().record(event_, stream);
  }
  ~Mark() { family_->library().destroy_event(event_); }
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;
  void hold_back(DeviceStream stream) const { family_->library().wait(stream, event_); }

 private:
  std::shared_ptr<NcclFamily> family_;
  DeviceEvent event_;
};

// The first that is not done, so that a failure inside of a batch is not lost.
class Verdict {
 public:
  void operator+=(NcclState state) { state_ = std::max(state_, state); }
  NcclState state() const { return state_; }

 private:
  NcclState state_ = NcclState::kDone;
};

std::vector<int64_t> offsets_of(std::span<const int64_t> sizes) {
  std::vector<int64_t> offsets(sizes.size() + 1, 0);
  for (size_t i = 0; i < sizes.size(); ++i) offsets[i + 1] = offsets[i] + sizes[i];
  return offsets;
}

class NcclTransport : public Transport {
 public:
  NcclTransport(std::shared_ptr<NcclFamily> family, NcclComm comm, Group host)
      : family_(std::move(family)), library_(family_->library()), comm_(family_, comm), host_(std::move(host)) {}

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  std::string name() const override { return "nccl"; }

  // The host's order of the ranks is the order: its new rank is NCCL's key.
  std::shared_ptr<Transport> split(int color, int key) override {
    Group part = host_.split(color, key);
    const NcclComm comm = family_->split(comm_.get(), color, part.rank());
    return std::make_shared<NcclTransport>(family_, comm, std::move(part));
  }

  void barrier() override { host_.barrier(); }
  std::vector<int> hosts() override { return host_.hosts(); }
  std::shared_ptr<SharedMemory> share(int64_t bytes) override { return host_.share(bytes); }
  void wait_until(const std::function<bool()>& done) override {
    host_.wait_until([&] {
      family_->throw_if_failed();
      return done();
    });
  }
  void poll() override {
    family_->throw_if_failed();
    host_.poll();
  }
  void abort(int code, const std::string& reason) override {
    family_->fail(fmt::format("the job was ended: {}", reason));
    host_.abort(code, reason);
  }

  void broadcast(std::span<std::byte> data, int root) override {
    if (!is_device(data)) return host_.broadcast(data, root);
    run("broadcast", [&](NcclPlace place) { return library_.broadcast(place, data, root); });
  }

  // NCCL's own all-gather has pieces of one size; others are as many broadcasts.
  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    if (!is_device(recv)) return host_.all_gather_v(send, recv, recv_bytes);
    check(send.empty() || is_device(send), "all_gather: both buffers are the GPU's");
    const std::vector<int64_t> offsets = offsets_of(recv_bytes);
    const bool is_even =
        std::all_of(recv_bytes.begin(), recv_bytes.end(), [&](int64_t bytes) { return bytes == recv_bytes[0]; });
    run("all_gather", [&](NcclPlace place) {
      if (is_even) return library_.all_gather(place, send, recv);
      std::byte* own = recv.data() + offsets[rank()];
      if (!send.empty() && send.data() != own) library_.copy(send, own, place.stream);
      Verdict verdict;
      verdict += library_.begin();
      for (int r = 0; r < size(); ++r)
        if (recv_bytes[r] > 0) verdict += library_.broadcast(place, recv.subspan(offsets[r], recv_bytes[r]), r);
      verdict += library_.end();
      return verdict.state();
    });
  }

  void all_reduce(std::span<std::byte> data, DType dtype, Reduce op) override {
    if (!is_device(data)) return reduce_on_host(data, dtype, op);
    run("all_reduce", [&](NcclPlace place) { return library_.all_reduce(place, data, dtype, op); });
  }

  // A rank that neither sends nor receives cannot see which memory the others use. So every all-to-all has its number
  // in the host's group too; without messages that costs nothing there.
  Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                          std::span<std::byte> recv, std::span<const int64_t> recv_bytes) override {
    const bool on_device = is_device(send) || is_device(recv);
    if (!on_device) return host_.start_all_to_all_v(send, send_bytes, recv, recv_bytes);
    check((send.empty() || is_device(send)) && (recv.empty() || is_device(recv)),
          "all_to_all: both buffers are the GPU's");
    const std::vector<int64_t> none(size(), 0);
    auto numbered =
        std::make_shared<Work>(host_.start_all_to_all_v(std::span<const std::byte>(), std::span<const int64_t>(none),
                                                        std::span<std::byte>(), std::span<const int64_t>(none)));
    const auto done = start("all_to_all", [&](NcclPlace place) {
      return exchange(place, {send, send_bytes, recv, recv_bytes});
    });
    return Work([done, numbered, family = family_] {
      numbered->finish();
      finish(*family, *done);
    });
  }

 private:
  struct Pieces {
    std::span<const std::byte> send;
    std::span<const int64_t> send_bytes;
    std::span<std::byte> recv;
    std::span<const int64_t> recv_bytes;
  };

  bool is_device(std::span<const std::byte> data) { return !data.empty() && library_.is_device_memory(data.data()); }

  NcclState exchange(NcclPlace place, const Pieces& pieces) {
    const std::vector<int64_t> from = offsets_of(pieces.send_bytes), to = offsets_of(pieces.recv_bytes);
    const auto outgoing = [&](int r) { return pieces.send.subspan(from[r], pieces.send_bytes[r]); };
    if (!outgoing(rank()).empty()) library_.copy(outgoing(rank()), pieces.recv.data() + to[rank()], place.stream);
    Verdict verdict;
    verdict += library_.begin();
    for (int step = 1; step < size(); ++step) {
      const int next = (rank() + step) % size(), previous = (rank() - step + size()) % size();
      if (pieces.send_bytes[next] > 0) verdict += library_.send(place, outgoing(next), next);
      if (pieces.recv_bytes[previous] > 0)
        verdict += library_.receive(place, pieces.recv.subspan(to[previous], pieces.recv_bytes[previous]), previous);
    }
    verdict += library_.end();
    return verdict.state();
  }

  // Gives the communication stream `calls`, after what the computation has been given.
  template <typename Calls>
  std::shared_ptr<Mark> start(const char* what, Calls calls) {
    const NcclPlace place{comm_.get(), family_->stream()};
    Mark(family_, library_.compute_stream()).hold_back(place.stream);
    family_->issue(comm_.get(), what, [&] { return calls(place); });
    return std::make_shared<Mark>(family_, place.stream);
  }
  static void finish(NcclFamily& family, const Mark& done) {
    family.throw_if_failed();
    done.hold_back(family.library().compute_stream());
  }
  template <typename Calls>
  void run(const char* what, Calls calls) {
    finish(*family_, *start(what, calls));
  }

  template <typename T>
  static std::span<T> typed(std::span<std::byte> data) {
    return {reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)};
  }
  void reduce_on_host(std::span<std::byte> data, DType dtype, Reduce op) {
    switch (dtype) {
      case DType::kFloat32:
        return host_.all_reduce(typed<float>(data), op);
      case DType::kFloat64:
        return host_.all_reduce(typed<double>(data), op);
      case DType::kInt32:
        return host_.all_reduce(typed<int32_t>(data), op);
      case DType::kInt64:
        return host_.all_reduce(typed<int64_t>(data), op);
    }
  }

  std::shared_ptr<NcclFamily> family_;
  NcclLibrary& library_;
  Communicator comm_;
  Group host_;
};

}  // namespace

std::shared_ptr<Transport> make_nccl_transport(std::shared_ptr<NcclLibrary> library, const Group& host,
                                               const NcclLimits& limits) {
  auto family = std::make_shared<NcclFamily>(std::move(library), limits);
  std::vector<NcclId> id(1);
  if (host.rank() == 0) id[0] = family->library().make_id();
  host.broadcast(std::span<NcclId>(id), 0);
  const NcclComm comm = family->join(host.size(), host.rank(), id[0]);
  return std::make_shared<NcclTransport>(std::move(family), comm, host);
}

}  // namespace conclave::comm
