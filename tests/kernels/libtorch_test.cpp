// SPDX-License-Identifier: Apache-2.0
// Facts about LibTorch that the code relies on.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

namespace conclave {
namespace {

// at::parallel_for is inline: compiled without -fopenmp it silently runs on one thread while get_num_threads says
// otherwise.
TEST(LibTorchTest, ParallelForUsesAsManyThreadsAsAsked) {
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    std::atomic<int> used{0};
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { used.fetch_add(1); });
    EXPECT_EQ(used.load(), threads);
  }
  at::set_num_threads(1);
}

}  // namespace
}  // namespace conclave
