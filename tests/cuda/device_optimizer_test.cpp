// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "cuda/device_runs.h"
#include "kernels/optimizer.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

class DeviceOptimizerTest : public DeviceTest {};

TEST_F(DeviceOptimizerTest, NormsHaveTheCpusBits) {
  // No element, one, odd ones; a slice and one more; an odd number of slices.
  for (const int64_t count :
       {int64_t{0}, int64_t{1}, int64_t{1025}, kNormSlice, kNormSlice + 1, 5 * kNormSlice - 777}) {
    const Tensor x = random_tensor({count}, at::kFloat, 1);
    const auto results = run_on_device([&] {
      const Tensor x_ = to_device(x);
      return std::vector<Tensor>{device_slice_sums_of_squares(x_), device_sum_of_squares_1(x_)};
    });
    expect_same_bits(results[0], device_slice_sums_of_squares(x), "slices");
    expect_same_bits(results[1], device_sum_of_squares_1(x), "sum");
  }
}

TEST_F(DeviceOptimizerTest, FindsTheFirstNumberThatIsNotFinite) {
  Tensor x = at::zeros({2 * kNormSlice + 5}, at::kFloat);
  const auto found = [&] {
    const auto results = run_on_device([&] { return std::vector<Tensor>{device_first_non_finite_1(to_device(x))}; });
    return results[0].item<int64_t>();
  };
  EXPECT_EQ(found(), -1);
  x[2 * kNormSlice + 4] = NAN;
  EXPECT_EQ(found(), 2 * kNormSlice + 4);
  x[kNormSlice + 300] = -INFINITY;
  x[kNormSlice + 299] = INFINITY;
  EXPECT_EQ(found(), kNormSlice + 299);
  x = at::zeros({0}, at::kFloat);
  EXPECT_EQ(found(), -1);
}

// Ranges of a flat buffer, some left out, at odd places, with and without decay; the same ranges on the CPU.
TEST_F(DeviceOptimizerTest, AdamwUpdatesRangesMomentsAndTheCopy) {
  const std::vector<AdamWRange> ranges = {
      {0, 0, 40, true}, {44, 40, 7, false}, {60, 48, 20001, true}, {20100, 20053, 1, false}};
  const AdamWStep step{.lr = 0.01, .weight_decay = 0.1, .step = 3, .grad_scale = 0.5};
  const Tensor p = random_tensor({20200}, at::kFloat, 1), m = random_tensor({20060}, at::kFloat, 2);
  const Tensor v = random_tensor({20060}, at::kFloat, 3).abs(), g = random_tensor({20060}, at::kFloat, 4);
  const Tensor copy = random_tensor({20200}, at::kBFloat16, 5), factor = at::full({1}, 0.25, at::kDouble);
  const auto updated = [&](const auto& placed) {
    AdamWBuffers b{placed(p), placed(m), placed(v), placed(g), placed(copy), placed(factor)};
    adamw(b, adamw_blocks(ranges, b.parameters), step);
    return std::vector<Tensor>{b.parameters, b.m, b.v, b.copy};
  };
  const auto results = run_on_device([&] { return updated(to_device); });
  const auto expected = updated([](const Tensor& tensor) { return tensor.clone(); });
  for (size_t i = 0; i < 3; ++i) expect_close(results[i], expected[i], "buffer " + std::to_string(i));
  for (const auto& range : ranges) {
    expect_same_bits(results[3].narrow(0, range.begin, range.count),
                     results[0].narrow(0, range.begin, range.count).to(at::kBFloat16), "copy");
  }
  for (const int64_t left_out : {40, 59, 20061, 20101}) {
    expect_same_bits(results[0][left_out], p[left_out], "not in a range");
    expect_same_bits(results[3][left_out], copy[left_out], "not in a range");
  }
  EXPECT_EQ((results[0].narrow(0, 0, 40) == p.narrow(0, 0, 40)).sum().item<int64_t>(), 0);
}

TEST_F(DeviceOptimizerTest, AdamwWithoutCopyOrFactorAndWithoutRanges) {
  const Tensor p = random_tensor({64}, at::kFloat, 1), zero = at::zeros({64}, at::kFloat),
               g = random_tensor({64}, at::kFloat, 2);
  const auto results = run_on_device([&] {
    AdamWBuffers b{to_device(p), to_device(zero), to_device(zero), to_device(g)};
    adamw(b, adamw_blocks({}, b.parameters), {.lr = 1});
    const Tensor kept = b.parameters.clone();
    const std::vector<AdamWRange> all = {{0, 0, 64}};
    adamw(b, adamw_blocks(all, b.parameters), {.lr = 1});
    return std::vector<Tensor>{kept, b.parameters};
  });
  expect_same_bits(results[0], p, "no ranges");
  // The first step of AdamW moves every parameter by the learning rate, against its gradient.
  expect_close(results[1], p - g.sign(), "first step");
}

}  // namespace
}  // namespace conclave::kernels
