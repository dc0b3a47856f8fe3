// SPDX-License-Identifier: Apache-2.0
#include "train/device_gradients.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <vector>

#include "core/tree_sum.h"

namespace conclave::train {
namespace {

std::span<float> span_of(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

// A flat buffer of gradients, and the ranks that have one for the same weights.
class FlatSum {
 public:
  FlatSum(const Tensor& weights, const comm::Group& copies, const parallel::Shards& owned)
      : copies_(copies),
        owned_(owned),
        all_(at::empty_like(weights)),
        sum_(shared() ? at::empty({owned.count()}, weights.options()) : all_) {}

  const Tensor& all() const { return all_; }
  const Tensor& sum() const { return sum_; }
  // Collective.
  void reduce() {
    if (copies_.size() == 1 || all_.numel() == 0) return;
    if (!shared()) return copies_.all_reduce(span_of(all_));
    for (size_t b = 0; b < owned_.buckets().size(); ++b) to_owners(b);
  }

 private:
  // Ranks own parts of it.
  bool shared() const { return owned_.group().size() > 1; }

  // Every rank sends each owner its part of the bucket, and adds up what it owns itself.
  void to_owners(size_t bucket) {
    const parallel::Shards::Cuts& cuts = owned_.buckets()[bucket];
    const parallel::OwnedRange& own = owned_.own(bucket);
    std::vector<int64_t> sent, received(copies_.size(), own.count);
    for (size_t r = 0; r + 1 < cuts.size(); ++r) sent.push_back(cuts[r + 1] - cuts[r]);
    const Tensor parts = at::empty({copies_.size(), own.count}, all_.options());
    copies_.all_to_all_v(std::span<const float>(span_of(all_)).subspan(cuts.front(), cuts.back() - cuts.front()),
                         std::span<const int64_t>(sent), span_of(parts), std::span<const int64_t>(received));
    Tensor sum = sum_.narrow(0, own.at, own.count);
    at::sum_out(sum, parts, 0);
  }

  comm::Group copies_;
  parallel::Shards owned_;
  Tensor all_, sum_;
};

class DeviceReducer : public parallel::GradientReducer<float> {
 public:
  DeviceReducer(const nn::Parameters& parameters, const parallel::Mesh& mesh, const model::Ownership& owned)
      : dp_(mesh.dp().size()),
        dense_(parameters.flat(false), mesh.dp(), owned.dense),
        expert_(parameters.flat(true), mesh.edp(), owned.expert) {}

  void begin_step(int64_t micro_batches) override {
    check(left_ == 0 && micro_batches % dp_ == 0, "dp divides the micro-batches; the last step has ended");
    left_ = micro_batches / dp_;
    dense_.all().zero_();
    expert_.all().zero_();
  }
  std::span<float> dense_gradient(int64_t ahead) override {
    check(left_ > ahead, "gradients are written between begin_step and the last micro_batch_done");
    return span_of(dense_.all());
  }
  std::span<float> expert_gradient(int64_t source, int64_t ahead) override {
    check(left_ > ahead && source == 0, "one rank writes its gradients before the last micro_batch_done");
    return span_of(expert_.all());
  }
  void micro_batch_done() override { check(left_-- > 0, "a step has as many micro-batches as were announced"); }
  void complete(bool, size_t) override {}
  void finish() override {
    check(left_ == 0, "a step is finished after its last micro-batch");
    dense_.reduce();
    expert_.reduce();
  }
  std::span<float> dense() override { return span_of(dense_.sum()); }
  std::span<float> expert() override { return span_of(expert_.sum()); }

 private:
  int64_t dp_;
  int64_t left_ = 0;  // micro-batches of this rank
  FlatSum dense_, expert_;
};

}  // namespace

std::unique_ptr<parallel::GradientReducer<float>> make_device_reducer(const nn::Parameters& parameters,
                                                                      const parallel::Mesh& mesh,
                                                                      const model::Ownership& owned) {
  return std::make_unique<DeviceReducer>(parameters, mesh, owned);
}

double joined_norm(const OwnSquares& own, const parallel::Mesh& mesh, bool sharded) {
  const std::vector<OwnSquares> all = mesh.world().all_gather_value(own);
  // The first ranks of the world have every expert once between them.
  const size_t dense_owners = sharded ? all.size() : 1, expert_owners = sharded ? all.size() : mesh.ep().size();
  std::vector<double> squares;
  for (size_t r = 0; r < dense_owners; ++r) squares.push_back(all[r].dense);
  for (size_t r = 0; r < expert_owners; ++r) squares.push_back(all[r].expert);
  return std::sqrt(tree_sum(std::span<const double>(squares)));
}

}  // namespace conclave::train
