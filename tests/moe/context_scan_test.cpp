// SPDX-License-Identifier: Apache-2.0
// The context that a router may see (methods.md 7.1).
#include "moe/context_scan.h"

#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/tensor_checks.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using kernels::random_tensor;

constexpr int64_t kWidth = 5, kLength = 9;

struct Scanned {
  nn::Parameters parameters;
  nn::ParameterId rates;
  ContextScan scan;
  Batch batch = testing::random_batch(2, kLength, 23, 1);

  Scanned()
      : rates(parameters.add(
            {.parts = {{"rates", {kWidth}}}, .shape = {kWidth}, .kind = nn::ParameterKind::kBias, .init_std = 1.0})),
        scan(parameters, rates) {
    parameters.allocate(at::kDouble, 1);
    // Three documents: the second begins in the middle of the first sequence.
    for (int64_t t = 5; t < kLength; ++t) batch.segment_ids[t] = 1;
  }
};

TEST(ContextScan, IsTheRecurrenceFromZeroForEachDocument) {
  Scanned s;
  const Tensor x = random_tensor({2 * kLength, kWidth}, at::kDouble, 2), c = s.scan.forward(x, s.batch);
  for (int64_t d = 0; d < kWidth; ++d) {
    const double decay = 1 / (1 + std::exp(-s.parameters.value(s.rates)[d].item<double>()));
    double before = 0;
    for (int64_t t = 0; t < 2 * kLength; ++t) {
      if (t == 0 || t == 5 || t == kLength) before = 0;
      before = decay * before + (1 - decay) * x[t][d].item<double>();
      EXPECT_NEAR(c[t][d].item<double>(), before, 1e-14) << t;
    }
  }
}

TEST(ContextScan, WithoutAPastIsTheTokenItself) {
  Scanned s;
  s.parameters.value(s.rates).fill_(-60);
  const Tensor x = random_tensor({2 * kLength, kWidth}, at::kDouble, 2);
  EXPECT_LT((s.scan.forward(x, s.batch) - x).abs().max().item<double>(), 1e-15);
}

std::map<std::string, Tensor> routers(model::Transformer& m) {
  std::map<std::string, Tensor> found;
  for (const auto& p : m.parameters().all())
    if (p.parts[0].name.find("moe.router") != std::string::npos)
      found[p.parts[0].name] = nn::view_of(m.parameters().flat(false), p);
  return found;
}

// Logits of either layer, and the last hidden states.
std::vector<Tensor> routed(const model::Transformer& m) {
  const Batch batch = testing::random_batch(2, 9, 23, 3);
  nn::Frame frame = m.frame(batch, nullptr);
  for (const auto& stage : m.stages()) stage->forward(frame);
  return {m.decision(frame, 0).choice.logits_TE.clone(), m.decision(frame, 1).choice.logits_TE.clone(),
          m.hidden(frame).clone()};
}

TEST(ContextRouter, WithoutAPastIsThePlainRouterOfTheTokenTwice) {
  auto config = testing::tiny_config();
  config.dtype = at::kDouble;
  model::Transformer plain(config);
  config.moe.router.context = true;
  model::Transformer with_context(config);
  auto weights = routers(with_context), plain_weights = routers(plain);
  for (const std::string layer : {"layers.0.", "layers.1."}) {
    const Tensor both = weights.at(layer + "moe.router.weight");  // [E, 2D]: of x and of c
    plain_weights.at(layer + "moe.router.weight").copy_(both.narrow(1, 0, 16) + both.narrow(1, 16, 16));
  }
  const auto expected = routed(plain), with_past = routed(with_context);
  for (const std::string layer : {"layers.0.", "layers.1."}) weights.at(layer + "moe.router.context.rate").fill_(-60);
  const auto without = routed(with_context);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LT((without[i] - expected[i]).abs().max().item<double>(), 1e-12) << i;
    EXPECT_GT((with_past[i] - expected[i]).abs().max().item<double>(), 1e-3) << i;
  }
}

TEST(ContextScan, GradientsEqualFiniteDifferences) {
  Scanned s;
  Tensor x = random_tensor({2 * kLength, kWidth}, at::kDouble, 2);
  const Tensor a = random_tensor({2 * kLength, kWidth}, at::kDouble, 3);
  const auto objective = [&] { return (s.scan.forward(x, s.batch) * a).sum().item<double>(); };
  nn::Gradients gradients{at::zeros_like(s.parameters.flat(false)), {}};
  const Tensor all = s.scan.through_time(a, s.batch), dx = s.scan.backward_input(all);
  // As two ranks that share the tokens would.
  for (const int64_t first : {0, 7}) {
    const int64_t count = first == 0 ? 7 : 2 * kLength - 7;
    s.scan.backward_weight({x.narrow(0, first, count), s.scan.forward(x, s.batch), all, first}, s.batch, gradients);
  }
  const auto compare = [&](Tensor value, const Tensor& gradient) {
    for (int64_t i = 0; i < value.numel(); ++i) {
      double& element = value.data_ptr<double>()[i];
      const double saved = element, h = 1e-6;
      element = saved + h;
      const double up = objective();
      element = saved - h;
      const double expected = (up - objective()) / (2 * h);
      element = saved;
      EXPECT_NEAR(gradient.contiguous().data_ptr<double>()[i], expected, 1e-8) << i;
    }
  };
  compare(x, dx);
  compare(s.parameters.value(s.rates), gradients.view(s.parameters[s.rates]));
}

}  // namespace
}  // namespace conclave::moe
