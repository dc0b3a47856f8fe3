// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

namespace conclave::optim {
namespace {

// What three updates with a gradient make of ones.
Tensor updated(const OptimConfig& config, double lr, const std::vector<Range>& ranges, double gradient) {
  Tensor parameters = at::full({32}, 1.0f);
  AdamW adamw(config, parameters, 32, ranges);
  for (int64_t update = 1; update <= 3; ++update)
    adamw.step(parameters, at::full({32}, static_cast<float>(gradient)), {.lr = lr, .update = update});
  return parameters;
}

TEST(AdamWScale, MultipliesTheLearningRateOfItsRange) {
  OptimConfig config;
  config.weight_decay = 0;
  const Tensor both = updated(config, 0.1, {{0, 0, 16}, {16, 16, 16, true, 0.25}}, 0.5);
  const Tensor whole = updated(config, 0.1, {{0, 0, 32}}, 0.5), quarter = updated(config, 0.025, {{0, 0, 32}}, 0.5);
  EXPECT_TRUE(both.narrow(0, 0, 16).equal(whole.narrow(0, 0, 16)));
  EXPECT_TRUE(both.narrow(0, 16, 16).equal(quarter.narrow(0, 16, 16)));
}

TEST(AdamWScale, LeavesTheDecayAsItIs) {
  OptimConfig config;
  config.weight_decay = 0.2;
  const Tensor decayed = updated(config, 0.1, {{0, 0, 16}, {16, 16, 16, true, 0.25}}, 0);
  EXPECT_NEAR(decayed[0].item<double>(), 0.98 * 0.98 * 0.98, 1e-6);
  EXPECT_EQ(decayed[0].item<double>(), decayed[31].item<double>());
}

}  // namespace
}  // namespace conclave::optim
