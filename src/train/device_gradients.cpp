// SPDX-License-Identifier: Apache-2.0
#include "train/device_gradients.h"

#include <ATen/ops/empty_like.h>

namespace conclave::train {
namespace {

std::span<float> span_of(Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

class DeviceReducer : public parallel::GradientReducer<float> {
 public:
  DeviceReducer(const nn::Parameters& parameters, const comm::Group& dp, const comm::Group& edp)
      : dp_(dp),
        edp_(edp),
        dense_(at::empty_like(parameters.flat(false))),
        expert_(at::empty_like(parameters.flat(true))) {}

  void begin_step(int64_t micro_batches) override {
    check(left_ == 0 && micro_batches % dp_.size() == 0, "dp divides the micro-batches; the last step has ended");
    left_ = micro_batches / dp_.size();
    dense_.zero_();
    expert_.zero_();
  }
  std::span<float> dense_gradient(int64_t ahead) override {
    check(left_ > ahead, "gradients are written between begin_step and the last micro_batch_done");
    return span_of(dense_);
  }
  std::span<float> expert_gradient(int64_t source, int64_t ahead) override {
    check(left_ > ahead && source == 0, "one rank writes its gradients before the last micro_batch_done");
    return span_of(expert_);
  }
  void micro_batch_done() override { check(left_-- > 0, "a step has as many micro-batches as were announced"); }
  void complete(bool, size_t) override {}
  void finish() override {
    check(left_ == 0, "a step is finished after its last micro-batch");
    if (dp_.size() > 1) dp_.all_reduce(span_of(dense_));
    if (edp_.size() > 1 && expert_.numel() > 0) edp_.all_reduce(span_of(expert_));
  }
  std::span<float> dense() override { return span_of(dense_); }
  std::span<float> expert() override { return span_of(expert_); }

 private:
  comm::Group dp_, edp_;
  int64_t left_ = 0;  // micro-batches of this rank
  Tensor dense_, expert_;
};

}  // namespace

std::unique_ptr<parallel::GradientReducer<float>> make_device_reducer(const nn::Parameters& parameters,
                                                                      const comm::Group& dp, const comm::Group& edp) {
  return std::make_unique<DeviceReducer>(parameters, dp, edp);
}

}  // namespace conclave::train
