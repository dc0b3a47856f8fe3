// SPDX-License-Identifier: Apache-2.0
#include "comm/activity.h"

namespace conclave::comm {
namespace {

class ObservedTransport : public Transport {
 public:
  ObservedTransport(std::shared_ptr<Transport> transport, std::shared_ptr<Activity> activity)
      : transport_(std::move(transport)), activity_(std::move(activity)) {}

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  std::string name() const override { return transport_->name(); }
  std::shared_ptr<Transport> split(int color, int key) override {
    const Inside inside(*activity_, "split");
    return make_observed(transport_->split(color, key), activity_);
  }
  void barrier() override {
    const Inside inside(*activity_, "barrier");
    transport_->barrier();
  }
  void broadcast(std::span<std::byte> data, int root) override {
    const Inside inside(*activity_, "broadcast");
    transport_->broadcast(data, root);
  }
  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    const Inside inside(*activity_, "all_gather");
    transport_->all_gather_v(send, recv, recv_bytes);
  }
  void all_reduce(std::span<std::byte> data, DType dtype, Reduce op) override {
    const Inside inside(*activity_, "all_reduce");
    transport_->all_reduce(data, dtype, op);
  }
  Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                          std::span<std::byte> recv, std::span<const int64_t> recv_bytes) override {
    const Inside inside(*activity_, "all_to_all");
    auto work = std::make_shared<Work>(transport_->start_all_to_all_v(send, send_bytes, recv, recv_bytes));
    return Work([work, activity = activity_] {
      const Inside finishing(*activity, "all_to_all");
      work->finish();
    });
  }
  std::vector<int> hosts() override {
    const Inside inside(*activity_, "hosts");
    return transport_->hosts();
  }
  std::shared_ptr<SharedMemory> share(int64_t bytes) override {
    const Inside inside(*activity_, "share");
    return transport_->share(bytes);
  }
  void wait_until(const std::function<bool()>& done) override {
    const Inside inside(*activity_, "shared window");
    transport_->wait_until(done);
  }
  void poll() override { transport_->poll(); }
  void abort(int code, const std::string& reason) override { transport_->abort(code, reason); }

 private:
  std::shared_ptr<Transport> transport_;
  std::shared_ptr<Activity> activity_;
};

}  // namespace

std::shared_ptr<Transport> make_observed(std::shared_ptr<Transport> transport, std::shared_ptr<Activity> activity) {
  return std::make_shared<ObservedTransport>(std::move(transport), std::move(activity));
}

}  // namespace conclave::comm
