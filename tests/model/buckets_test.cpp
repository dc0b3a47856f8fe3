// SPDX-License-Identifier: Apache-2.0
// Buckets rest on what stages say they use and on when executors tell of it: a stage that reads a weight it did not
// name would read an old one, a gradient that is written after its bucket was complete would be lost.
#include "model/buckets.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>

#include <limits>

#include "model/executor.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using model::Buckets;
using parallel::ExecutorType;

struct Model {
  std::string name;
  std::function<void(model::TransformerConfig&)> change;
};

// Every kind of parameter there is.
const std::vector<Model> kModels = {{"Plain", [](auto&) {}},
                                    {"Rich",
                                     [](auto& config) {
                                       config.moe.num_shared_experts = 1, config.moe.shared_gate = true;
                                       config.model.qkv_bias = true, config.model.qk_norm = model::QkNorm::kHead;
                                       config.moe.layers = moe::LayerPattern{1, 1};
                                       config.model.num_layers = 3;
                                     }},
                                    {"TiedAndRecomputed",
                                     [](auto& config) {
                                       config.model.tie_embeddings = true, config.model.qk_norm = model::QkNorm::kFull;
                                       config.memory.recompute = model::Recompute::kFull;
                                     }},
                                    {"Dense", [](auto& config) { config.moe.enabled = false; }}};

struct Case {
  Model of;
  ExecutorType executor;
};

class BucketsOf : public ::testing::TestWithParam<Case> {
 protected:
  model::TransformerConfig config() const {
    at::set_num_threads(1);
    auto config = testing::tiny_config();
    GetParam().of.change(config);
    config.chunks = GetParam().executor == ExecutorType::kChunked ? 3 : 1;
    config.dtype = at::kFloat;
    return config;
  }
  // Three micro-batches that add to `gradients`; returns their losses.
  std::vector<double> run(const model::Transformer& m, nn::Gradients& gradients, const model::WeightHooks& hooks) {
    std::vector<Batch> batches;
    for (int64_t i = 0; i < 3; ++i) batches.push_back(testing::random_batch(2, 10, 23, 7, i));
    std::vector<double> losses;
    const auto executor = model::Executor::make({GetParam().executor}, m);
    executor->run({.count = std::ssize(batches),
                   .begin =
                       [&](int64_t i) {
                         gradients.fresh = false;
                         return m.frame(batches[i], &gradients);
                       },
                   .end = [&](int64_t, nn::Frame& frame) { losses.push_back(frame.loss_sum); },
                   .hooks = hooks});
    return losses;
  }
  static nn::Gradients zeros(const model::Transformer& m) {
    return {at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}, false};
  }
};

TEST_P(BucketsOf, AStageReadsOnlyTheWeightsItNamesAndAfterItWasAnnounced) {
  model::Transformer m(config());
  auto gradients = zeros(m);
  const auto expected = run(m, gradients, {});
  const Tensor dense = m.parameters().flat(false).clone(), expert = m.parameters().flat(true).clone();
  for (const bool of_expert : {false, true})
    m.parameters().flat(of_expert).fill_(std::numeric_limits<float>::quiet_NaN());
  auto again = zeros(m);
  const auto arrive = [&](size_t stage) {
    for (const auto id : m.stages()[stage]->parameters()) {
      const auto& parameter = m.parameters()[id];
      m.parameters().value(id).copy_(nn::view_of(parameter.expert ? expert : dense, parameter));
    }
  };
  EXPECT_EQ(run(m, again, {.before_forward = arrive, .written = {}}), expected);
  EXPECT_TRUE(again.dense.equal(gradients.dense));
  EXPECT_TRUE(again.experts[0].equal(gradients.experts[0]));
}

TEST_P(BucketsOf, NobodyWritesToABucketThatIsComplete) {
  const model::Transformer m(config());
  const Buckets buckets = model::plan_buckets(m.parameters(), m.stages(), 500);
  model::BucketProgress progress(buckets, m.stages().size());
  auto gradients = zeros(m);
  const auto part = [&](const model::BucketId& id) {
    const auto& bucket = buckets[id.expert][id.index];
    return (id.expert ? gradients.experts[0] : gradients.dense).narrow(0, bucket.begin, bucket.end - bucket.begin);
  };
  std::vector<std::pair<model::BucketId, Tensor>> complete;
  progress.begin_step(3);
  EXPECT_EQ(progress.complete_from(false), m.parameters().flat_size(false));
  const auto written = [&](size_t stage) {
    for (const auto& id : progress.written(stage)) {
      complete.emplace_back(id, part(id).clone());
      EXPECT_EQ(progress.complete_from(id.expert) <= buckets[id.expert][id.index].begin, true);
    }
  };
  run(m, gradients, {.before_forward = {}, .written = written});
  size_t experts = 0;
  for (const auto& [id, at_the_time] : complete) {
    EXPECT_TRUE(part(id).equal(at_the_time)) << buckets[id.expert][id.index].name << " " << id.index;
    experts += id.expert;
  }
  EXPECT_EQ(experts, m.parameters().flat_size(true) > 0 ? buckets.expert.size() : 0u);
  EXPECT_EQ(complete.size() - experts, buckets.dense.size() - 1) << "all but the first";
  EXPECT_EQ(progress.complete_from(false), buckets.dense[1].begin);
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& of : kModels)
    for (const auto executor : {ExecutorType::kSequential, ExecutorType::kChunked, ExecutorType::kInterleaved})
      all.push_back({of, executor});
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  const std::vector<std::string> names{"Sequential", "Chunked", "Interleaved"};
  return info.param.of.name + names[static_cast<size_t>(info.param.executor)];
}

INSTANTIATE_TEST_SUITE_P(All, BucketsOf, ::testing::ValuesIn(cases()), name_of);

TEST(BucketsPlan, BlocksAndWhatIsAroundThemLieEndToEnd) {
  auto config = testing::tiny_config();
  config.moe.num_shared_experts = 1;
  const model::Transformer m(config);
  const Buckets buckets = model::plan_buckets(m.parameters(), m.stages());
  EXPECT_THAT(buckets.names(false), ::testing::ElementsAre("embedding", "layers.0", "layers.1", "final_norm"));
  EXPECT_THAT(buckets.names(true), ::testing::ElementsAre("layers.0 experts", "layers.1 experts"));
  for (const bool expert : {false, true}) {
    int64_t end = 0;
    for (const auto& bucket : buckets[expert]) EXPECT_EQ(bucket.begin, std::exchange(end, bucket.end));
    EXPECT_EQ(end, m.parameters().flat_size(expert));
  }
  std::vector<std::string> order;
  for (const auto& id : model::first_use_order(buckets)) order.push_back(buckets[id.expert][id.index].name);
  EXPECT_THAT(order, ::testing::ElementsAre("embedding", "layers.0", "layers.0 experts", "layers.1", "layers.1 experts",
                                            "final_norm"));
}

TEST(BucketsPlan, LargeOnesAreCutWhereSlicesOfTheNormBegin) {
  auto config = testing::tiny_config();
  config.model.vocab_size = 40000;  // 640,000 elements: 10 slices
  const model::Transformer m(config);
  const Buckets buckets = model::plan_buckets(m.parameters(), m.stages(), 200000);
  const auto starts = model::norm_slice_starts(m.parameters(), false);
  ASSERT_EQ(buckets.dense.size(), 4u + 2 + 4);
  int64_t end = 0;
  for (const auto& bucket : buckets.dense) {
    EXPECT_EQ(bucket.begin, std::exchange(end, bucket.end));
    EXPECT_TRUE(std::binary_search(starts.begin(), starts.end(), bucket.begin));
    EXPECT_LE(bucket.end - bucket.begin, 200000 + 65536);
  }
  EXPECT_EQ(end, m.parameters().flat_size(false));
  EXPECT_EQ(buckets.dense[0].stages, buckets.dense[3].stages);
}

// Blocks of one slice and a half: whoever owned the larger part of one has the smaller of the next.
TEST(BucketsPlanRanks, OwnersOfAllBucketsTogetherAreEven) {
  auto config = testing::tiny_config();
  config.model.hidden_size = 64, config.model.head_dim = 16, config.model.num_layers = 6;
  config.moe.enabled = false, config.moe.top_k = 1, config.moe.expert_hidden_size = 450;
  test::run_ranks(2, [&](const comm::Group& ranks) {
    const model::Transformer m(config);
    const Buckets buckets = model::plan_buckets(m.parameters(), m.stages());
    const auto owned = model::shards_of(buckets, m.parameters(), false, ranks);
    std::vector<int64_t> counts(2, 0);
    for (const int rank : {0, 1})
      for (const auto& range : owned.ranges_of(rank)) counts[rank] += range.count;
    EXPECT_GT(counts[0] + counts[1], 6 * 65536);
    EXPECT_LE(std::abs(counts[0] - counts[1]), 65536) << counts[0] << " and " << counts[1];
  });
}

}  // namespace
}  // namespace conclave
