// SPDX-License-Identifier: Apache-2.0
// A transport for device memory, tested with cases that know host memory only: each verb's buffers are copied to the
// device, and its results back after the compute stream has come so far.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "comm/group.h"

namespace conclave::test {

// Memory of a GPU, or of one that is made up. Copies are given to the compute stream; to_host also waits for it.
class DeviceBuffers {
 public:
  virtual ~DeviceBuffers() = default;
  virtual std::span<std::byte> allocate(int64_t bytes) = 0;
  virtual void release(std::span<std::byte> data) = 0;
  virtual void to_device(std::span<const std::byte> from, std::span<std::byte> to) = 0;
  virtual void to_host(std::span<const std::byte> from, std::span<std::byte> to) = 0;
};

class StagedTransport : public comm::Transport {
 public:
  StagedTransport(std::shared_ptr<comm::Transport> transport, std::shared_ptr<DeviceBuffers> device)
      : transport_(std::move(transport)), device_(std::move(device)) {}

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::string name() const override { return transport_->name(); }
  std::shared_ptr<comm::Transport> split(int color, int key) override {
    return std::make_shared<StagedTransport>(transport_->split(color, key), device_);
  }
  void barrier() override { transport_->barrier(); }
  void broadcast(std::span<std::byte> data, int root) override {
    Staged staged(*device_, data);
    transport_->broadcast(staged.data, root);
    device_->to_host(staged.data, data);
  }
  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    Staged out(*device_, send), in(*device_, recv);
    // In place stays in place.
    const bool inside = !send.empty() && send.data() >= recv.data() && send.data() < recv.data() + recv.size();
    transport_->all_gather_v(inside ? in.data.subspan(send.data() - recv.data(), send.size()) : out.data, in.data,
                             recv_bytes);
    device_->to_host(in.data, recv);
  }
  void all_reduce(std::span<std::byte> data, comm::DType dtype, comm::Reduce op) override {
    Staged staged(*device_, data);
    transport_->all_reduce(staged.data, dtype, op);
    device_->to_host(staged.data, data);
  }
  comm::Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                                std::span<std::byte> recv, std::span<const int64_t> recv_bytes) override {
    struct Exchange {
      Staged out, in;
      comm::Work work;
    };
    auto exchange = std::make_shared<Exchange>(Exchange{{*device_, send}, {*device_, recv}, {}});
    exchange->work = transport_->start_all_to_all_v(exchange->out.data, send_bytes, exchange->in.data, recv_bytes);
    return comm::Work([exchange, recv, device = device_] {
      exchange->work.finish();
      device->to_host(exchange->in.data, recv);
    });
  }
  std::vector<int> hosts() override { return transport_->hosts(); }
  std::shared_ptr<comm::SharedMemory> share(int64_t bytes) override { return transport_->share(bytes); }
  void wait_until(const std::function<bool()>& done) override { transport_->wait_until(done); }
  void poll() override { transport_->poll(); }
  void abort(int code, const std::string& reason) override { transport_->abort(code, reason); }

 private:
  struct Staged {
    Staged(DeviceBuffers& device, std::span<const std::byte> from)
        : device(&device), data(device.allocate(std::ssize(from))) {
      device.to_device(from, data);
    }
    Staged(Staged&& other) : device(std::exchange(other.device, nullptr)), data(other.data) {}
    ~Staged() {
      if (device != nullptr) device->release(data);
    }
    DeviceBuffers* device;
    std::span<std::byte> data;
  };

  std::shared_ptr<comm::Transport> transport_;
  std::shared_ptr<DeviceBuffers> device_;
};

}  // namespace conclave::test
