// SPDX-License-Identifier: Apache-2.0
#include "kernels/host_reads.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

namespace conclave::kernels {
namespace {

TEST(HostReads, AreCountedAndShownToWhoeverWatches) {
  HostReads reads;
  const Tensor two = at::full({2}, 2.0);
  EXPECT_EQ(elements<float>(reads.read(two))[1], 2.0f) << "nobody watches";
  int around = 0, inside = 0;
  reads.observe([&](const std::function<void()>& wait) {
    ++around;
    wait();
    ++inside;
  });
  const Tensor copy = reads.read(two);
  EXPECT_NE(copy.data_ptr(), two.data_ptr()) << "what is read stays as it was";
  EXPECT_EQ(reads.count(), 2);
  reads.wait_for(at::kCPU);
  EXPECT_EQ(reads.count(), 2) << "a wait looks at no number";
  EXPECT_EQ(around, 2);
  EXPECT_EQ(inside, 2);
}

}  // namespace
}  // namespace conclave::kernels
