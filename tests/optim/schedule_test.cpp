// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace conclave::optim {
namespace {

OptimConfig config(ScheduleType schedule, int64_t warmup) {
  OptimConfig config;
  config.lr = 1.0;
  config.min_lr = 0.1;
  config.schedule = schedule;
  config.warmup.steps = warmup;
  return config;
}

TEST(ScheduleTest, WarmUpIsLinearAndItsLastStepIsThePeak) {
  for (const auto schedule :
       {ScheduleType::kCosine, ScheduleType::kLinear, ScheduleType::kConstant, ScheduleType::kWsd}) {
    const auto c = config(schedule, 10);
    EXPECT_DOUBLE_EQ(learning_rate(c, 100, 0), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate(c, 100, 4), 0.5);
    EXPECT_DOUBLE_EQ(learning_rate(c, 100, 9), 1.0);
    EXPECT_DOUBLE_EQ(learning_rate(c, 100, 10), 1.0);
  }
}

TEST(ScheduleTest, CosineFollowsItsFormulaToMinLr) {
  const auto c = config(ScheduleType::kCosine, 10);
  for (int64_t step = 10; step < 111; ++step) {
    const double progress = static_cast<double>(step - 10) / 100;
    EXPECT_NEAR(learning_rate(c, 111, step), 0.1 + 0.45 * (1 + std::cos(std::numbers::pi * progress)), 1e-15);
  }
  EXPECT_NEAR(learning_rate(c, 111, 60), 0.55, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(c, 111, 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(c, 111, 500), 0.1);
}

TEST(ScheduleTest, LinearFallsEvenlyAndConstantStays) {
  const auto linear = config(ScheduleType::kLinear, 0);
  EXPECT_DOUBLE_EQ(learning_rate(linear, 11, 0), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(linear, 11, 5), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(linear, 11, 10), 0.1);
  const auto constant = config(ScheduleType::kConstant, 0);
  for (const int64_t step : {0, 5, 10, 1000}) EXPECT_DOUBLE_EQ(learning_rate(constant, 11, step), 1.0);
}

TEST(ScheduleTest, WsdStaysUntilItsLastTenthOrTheDecayAsked) {
  auto c = config(ScheduleType::kWsd, 10);
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 98), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 99), 1.0);  // first of the 11 steps of decay
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 104), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 109), 0.1);
  c.decay.emplace();
  c.decay->steps = 51;
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 59), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 84), 0.55);
}

TEST(ScheduleTest, RunsOfAFewStepsEndAtMinLr) {
  for (const auto schedule : {ScheduleType::kCosine, ScheduleType::kLinear, ScheduleType::kWsd}) {
    EXPECT_DOUBLE_EQ(learning_rate(config(schedule, 0), 1, 0), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate(config(schedule, 1), 2, 1), 0.1);
    EXPECT_DOUBLE_EQ(learning_rate(config(schedule, 5), 5, 4), 1.0);  // all of it is warm-up
  }
}

}  // namespace
}  // namespace conclave::optim
