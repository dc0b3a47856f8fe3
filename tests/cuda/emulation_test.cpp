// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulation.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace conclave::emulation {
namespace {

template <typename Thread>
std::string failure_of(const Grid& grid, const Thread& thread) {
  try {
    run(grid, thread);
  } catch (const EmulationError& error) {
    return error.what();
  }
  return "";
}

float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }

TEST(EmulationTest, ThreadsOfABlockMeetAtBarriersAndSeeSharedMemory) {
  for (const Order order : kOrders) {
    set_order(order);
    std::vector<float> out(3 * 64, -1);
    run({"rotate", 3, 64, 64 * sizeof(float)}, [&] {
      shared_floats()[threadIdx.x] = static_cast<float>(blockIdx.x * 100 + threadIdx.x);
      __syncthreads();
      out[blockIdx.x * 64 + threadIdx.x] = shared_floats()[(threadIdx.x + 1) % 64];
    });
    for (int b = 0; b < 3; ++b) {
      for (int i = 0; i < 64; ++i) EXPECT_EQ(out[b * 64 + i], b * 100 + (i + 1) % 64);
    }
  }
}

TEST(EmulationTest, WarpOperationsExchangeBetweenLanes) {
  for (const Order order : kOrders) {
    set_order(order);
    std::vector<int> sums(64), shifted(64);
    std::vector<unsigned> odd(64), same(64);
    run({"warp", 1, 64, 0}, [&] {
      const int i = static_cast<int>(threadIdx.x);
      int sum = i;
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      sums[i] = sum;
      shifted[i] = __shfl_up_sync(0xffffffffu, i, 1) + 1000 * __shfl_down_sync(0xffffffffu, i, 2);
      odd[i] = __ballot_sync(0xffffffffu, i % 2 == 1);
      same[i] = __match_any_sync(0xffffffffu, i % 4);
    });
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(sums[i], i < 32 ? 496 : 496 + 32 * 32);
      EXPECT_EQ(shifted[i], (i % 32 == 0 ? i : i - 1) + 1000 * (i % 32 < 30 ? i + 2 : i));
      EXPECT_EQ(odd[i], 0xaaaaaaaau);
      EXPECT_EQ(same[i], 0x11111111u << (i % 4));
    }
  }
}

TEST(EmulationTest, FindsABarrierThatSomeThreadsDoNotReach) {
  set_order(Order::kForward);
  const std::string ended = failure_of({"early", 1, 64, 0}, [] {
    if (threadIdx.x < 32) __syncthreads();
  });
  EXPECT_NE(ended.find("kernel early, block 0: deadlock: thread 0 waits"), std::string::npos) << ended;
  const std::string elsewhere = failure_of({"split", 1, 64, 0}, [] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  });
  EXPECT_NE(elsewhere.find("threads diverge"), std::string::npos) << elsewhere;
}

TEST(EmulationTest, FindsLanesThatDiverge) {
  const std::string missing = failure_of({"half", 1, 32, 0}, [] {
    if (threadIdx.x < 16) __shfl_xor_sync(0xffffffffu, 1, 1);
  });
  EXPECT_NE(missing.find("deadlock"), std::string::npos) << missing;
  const std::string lines = failure_of({"lines", 1, 32, 0}, [] {
    if (threadIdx.x < 16) {
      __shfl_xor_sync(0xffffffffu, 1, 1);
    } else {
      __shfl_xor_sync(0xffffffffu, 1, 1);
    }
  });
  EXPECT_NE(lines.find("lanes diverge"), std::string::npos) << lines;
  const std::string part = failure_of({"part", 1, 32, 0}, [] { __shfl_xor_sync(0xffffu, 1, 1); });
  EXPECT_NE(part.find("a part of the warp"), std::string::npos) << part;
}

TEST(EmulationTest, FindsSharedMemoryThatWasNotAskedFor) {
  const std::string error =
      failure_of({"beyond", 1, 32, 4 * sizeof(float)}, [] { shared_floats()[threadIdx.x % 5] = 1; });
  EXPECT_NE(error.find("beyond its 16 bytes"), std::string::npos) << error;
  EXPECT_NE(failure_of({"much", 1, 32, 49153}, [] {}).find("49153 bytes"), std::string::npos);
  EXPECT_NE(failure_of({"threads", 1, 33, 0}, [] {}).find("33 threads"), std::string::npos);
}

TEST(EmulationTest, SharedMemoryIsNotInitialised) {
  std::vector<float> seen(2);
  run({"fresh", 2, 32, 4}, [&] {
    if (threadIdx.x == 0) seen[blockIdx.x] = shared_floats()[0];
    __syncthreads();
    shared_floats()[0] = 1;
  });
  EXPECT_TRUE(seen[0] != seen[0] && seen[1] != seen[1]) << "both blocks read NaN";
}

TEST(EmulationTest, OrdersShowAMissingBarrier) {
  const auto racy = [] {
    std::vector<float> out(64);
    run({"racy", 1, 64, 64 * sizeof(float)}, [&] {
      shared_floats()[threadIdx.x] = static_cast<float>(threadIdx.x);
      out[threadIdx.x] = shared_floats()[threadIdx.x == 0 ? 63 : threadIdx.x - 1];
    });
    return out;
  };
  set_order(Order::kForward);
  const auto forward = racy();
  set_order(Order::kBackward);
  const auto backward = racy();
  int different = 0;
  for (size_t i = 0; i < forward.size(); ++i) different += forward[i] == backward[i] ? 0 : 1;
  EXPECT_GT(different, 0);
}

TEST(EmulationTest, AKernelsOwnExceptionComesOut) {
  EXPECT_THROW(run({"throws", 1, 32, 0}, [] { throw std::out_of_range("own"); }), std::out_of_range);
  int after = 0;
  run({"next", 1, 32, 0}, [&] { ++after; });
  EXPECT_EQ(after, 32);
}

}  // namespace
}  // namespace conclave::emulation
