// SPDX-License-Identifier: Apache-2.0
#include "app/recorded_transport.h"

#include <cstring>
#include <numeric>

#include "core/error.h"

namespace conclave::app {
namespace {

class RecordedTransport : public comm::Transport {
 public:
  RecordedTransport(const comm::Group& inner, std::shared_ptr<Recording> recording)
      : inner_(inner), recording_(std::move(recording)) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::string name() const override { return inner_.transport_name(); }
  std::shared_ptr<comm::Transport> split(int color, int key) override {
    return std::make_shared<RecordedTransport>(inner_.split(color, key), recording_);
  }
  void barrier() override { inner_.barrier(); }
  void broadcast(std::span<std::byte> data, int root) override { inner_.broadcast(data, root); }
  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    inner_.all_gather_v(send, recv, recv_bytes);
  }
  void all_reduce(std::span<std::byte> data, comm::DType dtype, comm::Reduce op) override {
    const auto as = [&]<typename T>(T) {
      inner_.all_reduce(std::span<T>(reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)), op);
    };
    switch (dtype) {
      case comm::DType::kFloat32:
        return as(float{});
      case comm::DType::kFloat64:
        return as(double{});
      case comm::DType::kInt32:
        return as(int32_t{});
      case comm::DType::kInt64:
        return as(int64_t{});
    }
  }
  comm::Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                                std::span<std::byte> recv, std::span<const int64_t> recv_bytes) override {
    if (recording_->mode() == Recording::Mode::kReplay) {
      const auto& known = recording_->next();
      check(known.received.size() == recv.size(), "what is played back is what was recorded");
      if (!recv.empty()) std::memcpy(recv.data(), known.received.data(), recv.size());
      return {};
    }
    auto work = inner_.start_all_to_all_v(send, send_bytes, recv, recv_bytes);
    if (recording_->mode() == Recording::Mode::kPass) return work;
    const auto exchange = recording_->remember(inner_);
    exchange->send_bytes.assign(send_bytes.begin(), send_bytes.end());
    exchange->recv_bytes.assign(recv_bytes.begin(), recv_bytes.end());
    const auto shared = std::make_shared<comm::Work>(std::move(work));
    return comm::Work([shared, exchange, recv] {
      shared->finish();
      exchange->received.assign(recv.begin(), recv.end());
    });
  }
  std::vector<int> hosts() override { return inner_.hosts(); }
  std::shared_ptr<comm::SharedMemory> share(int64_t bytes) override { return inner_.share(bytes); }
  void wait_until(const std::function<bool()>& done) override { inner_.wait_until(done); }
  void poll() override { inner_.poll(); }
  void abort(int code, const std::string& reason) override { inner_.abort(code, reason); }

 private:
  comm::Group inner_;
  std::shared_ptr<Recording> recording_;
};

}  // namespace

void Recording::set_mode(Mode mode) {
  mode_ = mode;
  next_ = 0;
  if (mode == Mode::kRecord) exchanges_.clear();
}

std::shared_ptr<Recording::Exchange> Recording::remember(comm::Group group) {
  exchanges_.push_back(std::make_shared<Exchange>(Exchange{std::move(group), {}, {}, {}}));
  return exchanges_.back();
}

const Recording::Exchange& Recording::next() {
  check(next_ < exchanges_.size(), "what is played back is what was recorded");
  return *exchanges_[next_++];
}

void Recording::communicate() const {
  std::vector<std::byte> send, recv;
  for (const auto& exchange : exchanges_) {
    const auto total = [](const std::vector<int64_t>& sizes) {
      return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    };
    send.resize(std::max<size_t>(send.size(), total(exchange->send_bytes)));
    recv.resize(std::max<size_t>(recv.size(), total(exchange->recv_bytes)));
    exchange->group.all_to_all_v(std::span<const std::byte>(send).first(total(exchange->send_bytes)),
                                 std::span<const int64_t>(exchange->send_bytes),
                                 std::span<std::byte>(recv).first(total(exchange->recv_bytes)),
                                 std::span<const int64_t>(exchange->recv_bytes));
  }
}

int64_t Recording::bytes_sent() const {
  int64_t bytes = 0;
  for (const auto& exchange : exchanges_)
    for (int r = 0; r < exchange->group.size(); ++r)
      if (r != exchange->group.rank()) bytes += exchange->send_bytes[r];
  return bytes;
}

comm::Group recorded(const comm::Group& group, std::shared_ptr<Recording> recording) {
  return comm::Group(std::make_shared<RecordedTransport>(group, std::move(recording)));
}

}  // namespace conclave::app
