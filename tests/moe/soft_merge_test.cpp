// SPDX-License-Identifier: Apache-2.0
// Lory (methods.md 1.15): merges against plain tensors, and what a segment may see.
#include "moe/soft_merge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using kernels::expect_close;
using kernels::random_tensor;

constexpr int64_t kWidth = 6, kHidden = 5, kLength = 11, kSegment = 4;

Tensor swiglu(const Tensor& x, const Tensor& gate_up, const Tensor& down) {
  const auto h = at::mm(x, gate_up.t()).chunk(2, 1);
  return at::mm(at::silu(h[0]) * h[1], down.t());
}

// One stage, its parameters and a batch of two sequences, the second of two documents with padding at its end.
struct Merged {
  nn::Parameters parameters;
  SoftMergeWeights weights;
  SoftMerge stage;
  Batch batch = testing::random_batch(2, kLength, 23, 1);
  Tensor x = random_tensor({2 * kLength, kWidth}, at::kDouble, 2);
  nn::Gradients gradients;

  explicit Merged(SoftMergeConfig config)
      : weights(add(config.experts)), stage({"merge", 0}, parameters, config, weights, {0, 1}) {
    parameters.allocate(at::kDouble, 1);
    for (int64_t t = kLength + 6; t < 2 * kLength; ++t) batch.segment_ids[t] = t < 2 * kLength - 2 ? 1 : -1;
    gradients = {at::zeros_like(parameters.flat(false)), {at::zeros_like(parameters.flat(true))}};
  }
  SoftMergeWeights add(int64_t experts) {
    const auto one = [&](const char* name, std::vector<int64_t> shape, bool expert) {
      return parameters.add({.parts = {{name, shape}}, .shape = shape, .expert = expert, .init_std = 0.7});
    };
    return {one("router", {experts, kWidth}, false), one("gate_up", {experts * 2 * kHidden, kWidth}, true),
            one("down", {experts * kWidth, kHidden}, true)};
  }
  Tensor forward(bool training) {
    nn::Frame frame(batch, 2, 1, training ? &gradients : nullptr);
    frame.value(0) = x;
    stage.forward(frame);
    return frame.value(1).clone();
  }
  // Gradient of the input; those of the parameters are added to `gradients`.
  Tensor backward(const Tensor& dy) {
    nn::Frame frame(batch, 2, 1, &gradients);
    frame.value(0) = x;
    stage.forward(frame);
    frame.grad(1) = dy;
    stage.backward_input(frame);
    stage.backward_weight(frame);
    return frame.grad(0).clone();
  }
  Tensor merged(const Tensor& q_E, nn::ParameterId id) const {
    const Tensor whole = parameters.value(id);
    const int64_t experts = q_E.size(0);
    return at::mm(q_E.view({1, -1}), whole.view({experts, -1})).view({whole.size(0) / experts, whole.size(1)});
  }
  // What tokens [begin, end) give if tokens [from, to) decide; none: all experts alike.
  Tensor expected(int64_t begin, int64_t end, int64_t from, int64_t to) const {
    const Tensor router = parameters.value(weights.router_ED);
    Tensor q = at::zeros_like(router.select(1, 0)) + 1.0 / static_cast<double>(router.size(0));
    if (to > from) q = at::softmax(at::mm(router, x.narrow(0, from, to - from).mean(0).view({-1, 1})).view({-1}), 0);
    return swiglu(x.narrow(0, begin, end - begin), merged(q, weights.gate_up_E2FD), merged(q, weights.down_EDF));
  }
};

TEST(SoftMerge, MergesEachSegmentByTheOneBeforeItAndStartsAnewForEachDocument) {
  Merged m({.experts = 3, .segment = kSegment});
  const int64_t b = kLength;
  const Tensor expected = at::cat({m.expected(0, 4, 0, 0), m.expected(4, 8, 0, 4), m.expected(8, 11, 4, 8),
                                   m.expected(b, b + 4, 0, 0), m.expected(b + 4, b + 6, b, b + 4),
                                   // The second document begins within a segment, padding within the next one.
                                   m.expected(b + 6, b + 8, 0, 0), m.expected(b + 8, b + 9, b + 6, b + 8),
                                   m.expected(b + 9, b + 11, 0, 0)});
  expect_close(m.forward(false), expected, "evaluation");
  expect_close(m.forward(true), expected, "training");
}

TEST(SoftMerge, MayMergeTheFirstSegmentByItselfInTraining) {
  Merged m({.experts = 3, .segment = kSegment, .own_first = true});
  m.batch = testing::random_batch(1, kLength, 23, 1);
  m.x = m.x.narrow(0, 0, kLength).contiguous();
  const Tensor later = at::cat({m.expected(4, 8, 0, 4), m.expected(8, 11, 4, 8)});
  expect_close(m.forward(true), at::cat({m.expected(0, 4, 0, 4), later}), "training");
  expect_close(m.forward(false), at::cat({m.expected(0, 4, 0, 0), later}), "evaluation");
}

TEST(SoftMerge, EqualsTheDenseLayerWhereExpertsAreEqualOrThereIsOne) {
  Merged one({.experts = 1, .segment = kSegment});
  expect_close(
      one.forward(true),
      swiglu(one.x, one.parameters.value(one.weights.gate_up_E2FD), one.parameters.value(one.weights.down_EDF)),
      "one expert");
  Merged equal({.experts = 4, .segment = kSegment});
  for (const auto id : {equal.weights.gate_up_E2FD, equal.weights.down_EDF}) {
    Tensor all = equal.parameters.value(id).view({4, -1});
    for (int64_t e = 1; e < 4; ++e) all.select(0, e).copy_(all.select(0, 0));
  }
  const auto first = [&](nn::ParameterId id) {
    const Tensor whole = equal.parameters.value(id);
    return whole.narrow(0, 0, whole.size(0) / 4);
  };
  expect_close(equal.forward(true), swiglu(equal.x, first(equal.weights.gate_up_E2FD), first(equal.weights.down_EDF)),
               "equal experts");
}

TEST(SoftMerge, GradientsEqualFiniteDifferences) {
  Merged m({.experts = 3, .segment = kSegment});
  const Tensor a = random_tensor({2 * kLength, kWidth}, at::kDouble, 3);
  const Tensor dx = m.backward(a);
  const auto compare = [&](Tensor value, const Tensor& gradient) {
    for (int64_t i = 0; i < value.numel(); ++i) {
      double& element = value.data_ptr<double>()[i];
      const double saved = element, h = 1e-6;
      element = saved + h;
      const double up = (m.forward(true) * a).sum().item<double>();
      element = saved - h;
      const double expected = (up - (m.forward(true) * a).sum().item<double>()) / (2 * h);
      element = saved;
      EXPECT_NEAR(gradient.contiguous().data_ptr<double>()[i], expected, 1e-7 * std::max(1.0, std::abs(expected))) << i;
    }
  };
  compare(m.x, dx);
  for (const auto& parameter : m.parameters.all())
    compare(nn::view_of(m.parameters.flat(parameter.expert), parameter), m.gradients.view(parameter));
}

TEST(SoftMerge, ALossOfOneSegmentReachesTheOneBeforeItAndNoRouterOfTheFirst) {
  for (const bool own_first : {false, true}) {
    Merged m({.experts = 3, .segment = kSegment, .own_first = own_first});
    Tensor dy = at::zeros_like(m.x);
    dy.narrow(0, 4, 4).fill_(1);  // the second segment of the first sequence
    const Tensor dx = m.backward(dy);
    EXPECT_GT(dx.narrow(0, 0, 4).abs().max().item<double>(), 1e-6);
    EXPECT_EQ(dx.narrow(0, 8, 2 * kLength - 8).abs().max().item<double>(), 0);
    EXPECT_GT(m.gradients.view(m.parameters[m.weights.router_ED]).abs().max().item<double>(), 1e-6);
    m.gradients.dense.zero_();
    dy.zero_().narrow(0, 0, 4).fill_(1);  // the first
    const Tensor alone = m.backward(dy);
    EXPECT_EQ(m.gradients.view(m.parameters[m.weights.router_ED]).abs().max().item<double>(), 0);
    // A token reaches its own output only.
    dy.narrow(0, 1, 3).zero_();
    EXPECT_EQ(m.backward(dy).narrow(0, 1, 3).abs().max().item<double>(), 0);
    EXPECT_TRUE(m.backward(dy).select(0, 0).equal(alone.select(0, 0)));
  }
}

// Tokens before a changed one whose outputs changed.
int64_t leaks(Merged& m, int64_t at, bool training) {
  const Tensor before = m.forward(training);
  m.x.select(0, at).add_(0.5);
  const Tensor after = m.forward(training);
  m.x.select(0, at).sub_(0.5);
  int64_t changed = 0;
  for (int64_t t = 0; t < at; ++t) changed += !after.select(0, t).equal(before.select(0, t));
  return changed;
}

TEST(SoftMerge, NoTokenSeesALaterOneButInAFirstSegmentMergedByItself) {
  Merged uniform({.experts = 3, .segment = kSegment}), own({.experts = 3, .segment = kSegment, .own_first = true});
  for (int64_t at = 0; at < kLength; ++at) {
    for (const bool training : {false, true}) EXPECT_EQ(leaks(uniform, at, training), 0) << at;
    EXPECT_EQ(leaks(own, at, false), 0) << at;
    EXPECT_EQ(leaks(own, at, true), at < kSegment ? at : 0) << at;
  }
}

}  // namespace
}  // namespace conclave::moe
