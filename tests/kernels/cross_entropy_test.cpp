// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

struct Result {
  Tensor loss, logits;
};

Result run(const Tensor& logits, std::span<const int32_t> targets, std::span<const float> mask, bool gradient) {
  Result r{at::empty({logits.size(0)}, logits.scalar_type()), logits.clone()};
  cross_entropy_rows(r.logits, targets, mask, gradient, r.loss);
  return r;
}

TEST(CrossEntropyTest, EqualsTheReferenceForwardAndBackward) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t rows : {0, 1, 9}) {
      for (const int32_t vocabulary : {1, 2, 63, 509, 1025, 5003}) {
        const Tensor logits = random_tensor({rows, vocabulary}, dtype, 1) * 4;
        const auto targets = random_indices(rows, 0, vocabulary, 2);
        std::vector<float> mask(rows, 1.0f);
        if (rows > 3) mask[2] = 0.0f, mask[3] = 0.25f;
        const Tensor logits64 = leaf(logits);
        Tensor loss64 = at::logsumexp(logits64, -1);
        std::vector<Tensor> picked;
        for (int64_t i = 0; i < rows; ++i) picked.push_back(mask[i] * (loss64[i] - logits64[i][targets[i]]));

        const Result with = run(logits, targets, mask, true), without = run(logits, targets, mask, false);
        expect_same_bits(without.logits, logits, "logits without gradient");
        expect_same_bits(without.loss, with.loss, "loss with and without gradient");
        if (rows == 0) continue;
        loss64 = at::stack(picked);
        loss64.sum().backward();
        expect_close(with.loss, loss64, "loss");
        expect_close(with.logits, logits64.grad(), "gradient");
      }
    }
  }
}

TEST(CrossEntropyTest, GradientEqualsFiniteDifferences) {
  const Tensor logits = random_tensor({1, 11}, at::kDouble, 1);
  const std::vector<int32_t> target{4};
  const std::vector<float> mask{0.5f};
  const Result result = run(logits, target, mask, true);
  const double step = 1e-5;
  for (int64_t i = 0; i < 11; ++i) {
    const auto loss = [&](double shift) {
      const Tensor moved = logits.clone();
      moved.mutable_data_ptr<double>()[i] += shift;
      return run(moved, target, mask, false).loss.item<double>();
    };
    EXPECT_NEAR(result.logits.const_data_ptr<double>()[i], (loss(step) - loss(-step)) / (2 * step), 1e-9);
  }
}

TEST(CrossEntropyTest, MaskedRowsCountForNothingWhateverTheyHold) {
  const Tensor logits = random_tensor({3, 10}, at::kFloat, 1);
  logits[1].fill_(NAN);
  const Result result = run(logits, std::vector<int32_t>{3, -1, 5}, std::vector<float>{1, 0, 1}, true);
  EXPECT_EQ(result.loss[1].item<float>(), 0.0f);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(result.logits[1][i].item<float>(), 0.0f);
  EXPECT_TRUE(std::isfinite(result.loss.sum().item<float>()));
}

TEST(CrossEntropyTest, NanInACountedRowIsNotHidden) {
  const Tensor logits = random_tensor({1, 2000}, at::kFloat, 1);
  logits[0][1234] = NAN;
  EXPECT_TRUE(std::isnan(run(logits, std::vector<int32_t>{0}, std::vector<float>{1}, true).loss.item<float>()));
}

TEST(CrossEntropyTest, TargetsOutsideTheVocabularyAreRefused) {
  const Tensor logits = random_tensor({1, 10}, at::kFloat, 1);
  const std::vector<float> mask{1};
  EXPECT_THROW(run(logits, std::vector<int32_t>{10}, mask, true), BugError);
  EXPECT_THROW(run(logits, std::vector<int32_t>{-1}, mask, true), BugError);
  EXPECT_THROW(run(logits, std::vector<int32_t>{1, 2}, mask, true), BugError);
}

TEST(CrossEntropyTest, ThreadsAndOtherRowsDoNotShow) {
  const Tensor logits = random_tensor({29, 3001}, at::kFloat, 1);
  const auto targets = random_indices(29, 0, 3001, 2);
  const std::vector<float> mask(29, 1.0f);
  const auto part = [&](int64_t first, int64_t count) {
    const Result r = run(logits.narrow(0, first, count), std::span(targets).subspan(first, count),
                         std::span(mask).subspan(first, count), true);
    return std::vector<Tensor>{r.loss, r.logits};
  };
  expect_threads_do_not_show([&] { return part(0, 29); });
  expect_other_rows_do_not_show(29, part);
}

}  // namespace
}  // namespace conclave::kernels
