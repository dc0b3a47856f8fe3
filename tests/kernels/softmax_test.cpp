// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

struct Softmax {
  Tensor probs, lse;
};

Softmax softmax(const Tensor& logits) {
  Softmax s{at::empty_like(logits), at::empty({logits.size(0)}, logits.scalar_type())};
  softmax_rows(logits, s.probs, s.lse);
  return s;
}

std::vector<int32_t> top_k(const Tensor& scores, int64_t k) {
  std::vector<int32_t> ids(scores.size(0) * k);
  top_k_rows(scores, k, ids);
  return ids;
}

TEST(SoftmaxTest, EqualsTheReference) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t rows : {0, 1, 70}) {
      for (const int64_t experts : {1, 2, 7, 8, 63, 64, 65, 160, 512, 2500}) {
        const Tensor logits = random_tensor({rows, experts}, dtype, 1) * 10, logits64 = logits.to(at::kDouble);
        const auto [probs, lse] = softmax(logits);
        expect_close(probs, at::softmax(logits64, -1), "probs");
        expect_close(lse, at::logsumexp(logits64, -1), "lse");
        Tensor scores = at::empty_like(logits);
        sigmoid_rows(logits, scores);
        expect_close(scores, at::sigmoid(logits64), "sigmoid");
      }
    }
  }
}

TEST(SoftmaxTest, HugeLogitsDoNotOverflowAndNanIsNotHidden) {
  Tensor logits = random_tensor({1, 5}, at::kFloat, 1);
  float* x = logits.mutable_data_ptr<float>();
  std::copy_n(std::array<float, 5>{3e38f, -3e38f, 3e38f, 0.0f, -INFINITY}.begin(), 5, x);
  const auto [probs, lse] = softmax(logits);
  const float* p = probs.const_data_ptr<float>();
  EXPECT_EQ(std::vector<float>(p, p + 5), (std::vector<float>{0.5f, 0, 0.5f, 0, 0}));
  EXPECT_EQ(lse.item<float>(), 3e38f);
  x[3] = NAN;
  const Tensor broken = softmax(logits).probs;
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(std::isnan(broken.const_data_ptr<float>()[i]));
}

TEST(SoftmaxTest, ThreadsAndOtherRowsDoNotShow) {
  for (const int64_t experts : {7, 64, 1100}) {
    const Tensor logits = random_tensor({203, experts}, at::kFloat, 1);
    const auto run = [&](int64_t first, int64_t count) {
      const auto [probs, lse] = softmax(logits.narrow(0, first, count));
      Tensor scores = at::empty_like(probs);
      sigmoid_rows(logits.narrow(0, first, count), scores);
      return std::vector<Tensor>{probs, lse, scores};
    };
    expect_threads_do_not_show([&] { return run(0, 203); });
    expect_other_rows_do_not_show(203, run);
  }
}

// A stable sort of all columns, best first, with NaN below everything.
std::vector<int32_t> sorted_columns(const Tensor& scores, int64_t row, int64_t k) {
  std::vector<int32_t> ids(scores.size(1));
  std::iota(ids.begin(), ids.end(), 0);
  const Tensor values = scores[row].to(at::kDouble);
  const double* s = values.const_data_ptr<double>();
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    if (std::isnan(s[a]) || std::isnan(s[b])) return !std::isnan(s[a]) && std::isnan(s[b]);
    return s[a] > s[b];
  });
  ids.resize(k);
  return ids;
}

TEST(SoftmaxTest, TopKIsAStableSortEvenWithTiesAndNan) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t experts : {1, 2, 8, 65, 512, 3000}) {
      for (const int64_t k : {int64_t{1}, int64_t{2}, int64_t{6}, int64_t{64}, experts}) {
        if (k > experts) continue;
        // Few different values: most columns tie.
        const Tensor scores = (random_tensor({6, experts}, dtype, 1) * 2).round();
        scores[1].fill_(0.25);
        scores[2][experts - 1] = NAN;
        scores[3].fill_(NAN);
        scores[4][0] = -INFINITY;
        scores[4][experts / 2] = NAN;
        const auto ids = top_k(scores, k);
        for (int64_t t = 0; t < 6; ++t) {
          const std::vector<int32_t> row(ids.begin() + t * k, ids.begin() + (t + 1) * k);
          EXPECT_EQ(row, sorted_columns(scores, t, k)) << experts << " columns, row " << t;
        }
      }
    }
  }
}

TEST(SoftmaxTest, TopKRefusesImpossibleK) {
  const Tensor scores = random_tensor({2, 4}, at::kFloat, 1);
  EXPECT_THROW(top_k(scores, 0), BugError);
  EXPECT_THROW(top_k(scores, 5), BugError);
  std::vector<int32_t> short_list(3);
  EXPECT_THROW(top_k_rows(scores, 2, short_list), BugError);
}

}  // namespace
}  // namespace conclave::kernels
