// SPDX-License-Identifier: Apache-2.0
#include "moe/compression_stages.h"

#include <ATen/ops/ones.h>

namespace conclave::moe {

void Compress::forward(nn::Frame& frame) {
  const Routing& routing = frame.object_as<Decision>(slots_.decision).routing;
  const auto classes = frame.training() ? compressor_->classes(frame.value(slots_.input)) : std::vector<int32_t>();
  RowBuckets buckets = make_buckets(routing, classes);
  Decision decision;
  decision.routing = bucket_routing(buckets, routing);
  frame.object(slots_.bucket_decision) = std::move(decision);
  frame.object(slots_.buckets) = std::move(buckets);
  forward_again(frame);
}

void Compress::forward_again(nn::Frame& frame) {
  const auto& buckets = frame.object_as<RowBuckets>(slots_.buckets);
  const Tensor& x = frame.value(slots_.input);
  frame.value(slots_.means) = bucket_means(x, buckets);
  frame.value(slots_.ones) = at::ones({buckets.count()}, x.options());
}

void Compress::backward_input(nn::Frame& frame) {
  const Routing& routing = frame.object_as<Decision>(slots_.decision).routing;
  frame.add_grad(slots_.input,
                 bucket_means_backward(frame.grad(slots_.means), frame.object_as<RowBuckets>(slots_.buckets), routing));
}

Expansion Expand::values(nn::Frame& frame) const {
  return {frame.value(slots_.input), frame.value(slots_.weights), frame.value(slots_.means),
          frame.value(slots_.results)};
}

void Expand::forward(nn::Frame& frame) {
  const Routing& routing = frame.object_as<Decision>(slots_.decision).routing;
  frame.value(slots_.output) = expand(values(frame), frame.object_as<RowBuckets>(slots_.buckets), routing);
}

void Expand::backward_input(nn::Frame& frame) {
  const Routing& routing = frame.object_as<Decision>(slots_.decision).routing;
  const Expansion gradients =
      expand_backward(values(frame), frame.grad(slots_.output), frame.object_as<RowBuckets>(slots_.buckets), routing);
  frame.add_grad(slots_.input, gradients.x_TD);
  frame.add_grad(slots_.weights, gradients.weights_N);
  frame.add_grad(slots_.means, gradients.means_BD);
  frame.add_grad(slots_.results, gradients.results_BD);
}

}  // namespace conclave::moe
