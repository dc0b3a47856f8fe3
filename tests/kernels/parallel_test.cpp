// SPDX-License-Identifier: Apache-2.0
#include "kernels/parallel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <thread>

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "kernels/optimizer.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/softmax.h"
#include "kernels/swiglu.h"
#include "kernels/tensor_checks.h"
#include "support/thread_count.h"

namespace conclave::kernels {
namespace {

TEST(ParallelTest, ForRowsCoversEveryRowOnceWithTheThreadsAskedFor) {
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    for (const int64_t rows : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> seen(rows);
      std::mutex mutex;
      std::set<std::thread::id> used;
      for_rows(rows, kWorkPerThread, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) seen[i].fetch_add(1);
        const std::lock_guard lock(mutex);
        used.insert(std::this_thread::get_id());
      });
      for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
      EXPECT_EQ(static_cast<int64_t>(used.size()), std::min<int64_t>(rows, threads));
    }
  }
  at::set_num_threads(1);
}

TEST(ParallelTest, LittleWorkStaysOnOneThread) {
  at::set_num_threads(3);
  std::atomic<int> calls{0};
  for_rows(100, 1, [&](int64_t, int64_t) { calls.fetch_add(1); });
  EXPECT_EQ(calls.load(), 1);
  at::set_num_threads(1);
}

struct Kernel {
  const char* name;
  std::function<void()> run;
};

// Every kernel that rounds, on enough rows and columns to be worth three threads.
class Kernels {
 public:
  std::vector<Kernel> all() {
    return {
        {"rms_norm", [this] { rms_norm(x_, weight_, 1e-5, y_, rstd_); }},
        {"rms_norm_backward_input", [this] { rms_norm_backward_input(dy_, x_, weight_, rstd_, y_); }},
        {"rms_norm_backward_weight", [this] { rms_norm_backward_weight(dy_, x_, rstd_, dweight_); }},
        {"rope", [this] { rope(heads_, positions_, table_, false); }},
        {"swiglu", [this] { swiglu(x_, Tensor(), half_); }},
        {"swiglu_backward",
         [this] {
           SwigluGradients gradients{y_, dots_, half_};
           swiglu_backward(dhalf_, x_, rstd_, gradients);
         }},
        {"sum_rows", [this] { sum_rows(x_, offsets_, indices_, true, y_); }},
        {"add_bias", [this] { add_bias(y_, weight_); }},
        {"sum_columns", [this] { sum_columns(x_, dweight_); }},
        {"add", [this] { add(y_, x_); }},
        {"softmax_rows", [this] { softmax_rows(x_, y_, dots_); }},
        {"sigmoid_rows", [this] { sigmoid_rows(x_, y_); }},
        {"cross_entropy_rows", [this] { cross_entropy_rows(logits_, indices_, mask_, true, dots_); }},
        {"embedding_backward", [this] { embedding_backward(x_, indices_, y_); }},
        {"adamw", [this] { adamw(y_, m_, v_, x_, {.lr = 0.1}); }},
        {"sum_of_squares", [this] { sum_of_squares(x_); }},
        {"fill_normal", [this] { fill_normal(y_, Random(1, Purpose::kTest), 0, 0.1); }},
    };
  }

 private:
  static constexpr int64_t kRows = 600, kColumns = 512;
  Tensor x_ = random_tensor({kRows, kColumns}, at::kFloat, 1), dy_ = random_tensor({kRows, kColumns}, at::kFloat, 2);
  Tensor weight_ = random_tensor({kColumns}, at::kFloat, 3), y_ = dy_.clone(), logits_ = x_.clone();
  Tensor rstd_ = random_tensor({kRows}, at::kFloat, 4), dweight_ = weight_.clone(), dots_ = rstd_.clone();
  Tensor half_ = at::zeros({kRows, kColumns / 2}, at::kFloat), m_ = at::zeros({kRows, kColumns}, at::kFloat);
  Tensor dhalf_ = random_tensor({kRows, kColumns / 2}, at::kFloat, 5), v_ = m_.clone();
  Tensor heads_ = random_tensor({kRows, 8, 64}, at::kFloat, 6);
  RopeTable table_ = rope_table(512, 64, 10000.0, at::kFloat);
  std::vector<int32_t> positions_ = random_indices(kRows, 1, 512, 7), indices_ = random_indices(kRows, 0, 500, 8);
  std::vector<int32_t> offsets_ = [] {
    std::vector<int32_t> offsets(kRows + 1);
    for (int64_t i = 0; i <= kRows; ++i) offsets[i] = static_cast<int32_t>(i);
    return offsets;
  }();
  std::vector<float> mask_ = std::vector<float>(kRows, 1.0f);
};

TEST(ParallelTest, EveryKernelUsesAsManyThreadsAsAskedFor) {
  Kernels kernels;
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    for (const Kernel& kernel : kernels.all()) {
      EXPECT_EQ(test::threads_that_rounded(threads, kernel.run), threads) << kernel.name;
    }
  }
  at::set_num_threads(1);
}

}  // namespace
}  // namespace conclave::kernels
