// SPDX-License-Identifier: Apache-2.0
// The canonical sums over processes have the bits of one process.
#include <gtest/gtest.h>

#include <cmath>

#include "core/random.h"
#include "core/tree_sum.h"
#include "launched/launched_world.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"
#include "parallel/tree_reduce.h"

namespace conclave::test {
namespace {

using parallel::Axis;
using parallel::make_gradient_reducer;
using parallel::Mesh;
using parallel::mesh_sizes;
using parallel::ParallelConfig;
using parallel::Reduction;
using parallel::Shards;

float number(int64_t micro_batch, int64_t element) {
  const Random random(3, Purpose::kTest, micro_batch);
  return static_cast<float>(random.normal(2 * element) * std::exp(6 * random.normal(2 * element + 1)));
}

std::vector<float> tree_over(int64_t micro_batches, int64_t first, int64_t count) {
  std::vector<float> sums, values(micro_batches);
  for (int64_t i = first; i < first + count; ++i) {
    for (int64_t m = 0; m < micro_batches; ++m) values[m] = number(m, i);
    sums.push_back(tree_sum(std::span<const float>(values)));
  }
  return sums;
}

// More buckets than travel at a time, each shared as evenly as it goes.
constexpr int64_t kBuckets = 6;
Shards in_buckets(const comm::Group& group, int64_t elements) {
  std::vector<Shards::Cuts> buckets;
  for (int64_t b = 0; b < kBuckets; ++b) {
    const int64_t begin = elements * b / kBuckets, count = elements * (b + 1) / kBuckets - begin;
    buckets.emplace_back();
    for (int r = 0; r <= group.size(); ++r) buckets.back().push_back(begin + count * r / group.size());
  }
  return Shards(group, buckets);
}

TEST(GradientReducerLaunchedTest, CanonicalHasTheBitsOfOneProcessForEveryEp) {
  const comm::Group world = launched_world().group();
  const int64_t micro_batches = 4 * world.size();
  const int64_t dense = 60001, expert = 20000;
  for (int64_t ep = 1; ep <= world.size(); ++ep) {
    if (world.size() % ep != 0) continue;
    ParallelConfig config;
    config.ep = ep;
    const Mesh mesh(world, mesh_sizes(config, world.size()));
    const auto reducer = make_gradient_reducer<float>(
        Reduction::kCanonical,
        {.dense = in_buckets(mesh.dp(), dense), .expert = in_buckets(mesh.edp(), expert), .sources = ep});
    reducer->begin_step(micro_batches);
    const int64_t place = mesh.coordinate(Axis::kEp) * expert;
    for (int64_t m = 0; m < 4; ++m) {
      for (int64_t i = 0; i < dense; ++i) reducer->dense_gradient()[i] += number(mesh.coordinate(Axis::kDp) * 4 + m, i);
      for (int64_t s = 0; s < ep; ++s)
        for (int64_t i = 0; i < expert; ++i)
          reducer->expert_gradient(s)[i] += number((mesh.coordinate(Axis::kEdp) * ep + s) * 4 + m, place + i);
      for (int64_t bucket = kBuckets - 1; m == 3 && bucket > 0; --bucket)
        for (const bool of_expert : {false, true}) reducer->complete(of_expert, bucket);
      reducer->micro_batch_done();
    }
    reducer->finish();
    EXPECT_EQ(std::vector<float>(reducer->dense().begin(), reducer->dense().end()), tree_over(micro_batches, 0, dense));
    EXPECT_EQ(std::vector<float>(reducer->expert().begin(), reducer->expert().end()),
              tree_over(micro_batches, place, expert))
        << "ep " << ep;
  }
}

}  // namespace
}  // namespace conclave::test
