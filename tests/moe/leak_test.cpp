// SPDX-License-Identifier: Apache-2.0
// The leak test of methods.md 8 for every method, on the whole model: a changed token must not change the bits of
// anything before it. Methods of class C3 break this in training, and only there.
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "model/executor.h"
#include "moe/causality.h"
#include "moe/compression.h"
#include "support/expert_mesh.h"
#include "support/moe_methods.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

constexpr int64_t kLength = 29;

model::TransformerConfig config_of(const testing::Method& method) {
  auto config = testing::tiny_config();
  config.moe = method.config();
  if (!config.moe.expert_hidden_size) config.moe.expert_hidden_size = 12;
  if (config.moe.capacity.factor) config.moe.capacity.factor = 0.5;  // many drops
  return config;
}

Tensor hidden(const model::Transformer& m, const Batch& batch, bool training) {
  nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {}};
  for (int r = 0; r < m.mesh().ep().size(); ++r) gradients.experts.push_back(at::zeros_like(m.parameters().flat(true)));
  nn::Frame frame = m.frame(batch, training ? &gradients : nullptr);
  for (const auto& stage : m.stages()) stage->forward(frame);
  return m.hidden(frame).clone();
}

// Tokens whose outputs changed, before a changed one and behind it, over several places of the change.
struct Changes {
  int64_t before = 0, behind = 0;
};

Changes changes(const model::Transformer& m, bool training) {
  const Batch batch = testing::random_batch(1, kLength, 23, 3);
  const Tensor before = hidden(m, batch, training);
  Changes changed;
  for (const int64_t at : {int64_t{5}, int64_t{16}, int64_t{23}, kLength - 1}) {
    for (const int32_t shift : {1, 7, 12}) {
      Batch other = batch;
      other.tokens[at] = (other.tokens[at] + shift) % 23;
      const Tensor after = hidden(m, other, training);
      EXPECT_FALSE(after[at].equal(before[at])) << "the change shows nowhere";
      for (int64_t t = 0; t < kLength; ++t)
        if (t != at) (t < at ? changed.before : changed.behind) += !after[t].equal(before[t]);
    }
  }
  return changed;
}

int64_t leaks(const model::Transformer& m, bool training) { return changes(m, training).before; }

// Leaves each token alone with the experts: what earlier ones change then, they change by routing.
void silence_attention(model::Transformer& m) {
  for (const auto& p : m.parameters().all())
    if (p.parts[0].name.find("attention.o") != std::string::npos) nn::view_of(m.parameters().flat(false), p).zero_();
}

// Moves what steps move. Tables that are drawn once stay.
void change_state(model::Transformer& m) {
  for (const auto& layer : m.state().layers) {
    for (const auto& entry : layer.entries()) {
      if (entry.name == "hash_table") continue;
      if (entry.value.scalar_type() == at::kLong)
        entry.value.fill_(3);
      else
        entry.value.copy_(kernels::random_tensor(entry.value.sizes().vec(), at::kFloat, 4) * 0.3);
    }
  }
  for (const auto& entry : m.state().shared.entries()) entry.value.fill_(3);
}

// As after some training: what evaluations go by is there.
void train_thresholds(model::Transformer& m) {
  for (const auto& layer : m.state().layers) {
    if (const Tensor means = layer.get("default_outputs"); means.defined())
      means.copy_(kernels::random_tensor(means.sizes().vec(), at::kFloat, 4));
    if (!layer.has("threshold")) continue;
    layer.get("threshold").fill_(0.25);
    layer.get("threshold_steps").fill_(1);
  }
}

class Leak : public ::testing::TestWithParam<testing::Method> {
 protected:
  bool leaky() const {
    const auto config = GetParam().config();
    const auto leaks = [](const moe::MethodInfo& info) { return info.causality == moe::Causality::kLeaky; };
    return moe::causality_of(config.router) == moe::Causality::kLeaky ||
           (config.capacity.factor && leaks(moe::Admission::row(config.capacity.policy).info)) ||
           (config.dispatch.compression && leaks(moe::Compressor::row(config.dispatch.compression->type).info));
  }
  // Class C1: earlier positions count.
  bool positional() const {
    const auto config = GetParam().config();
    const auto counts = [](const moe::MethodInfo& info) { return info.causality == moe::Causality::kPositionCausal; };
    const bool previous = config.router.hash && config.router.hash->feature == moe::HashFeature::kPrevious;
    return counts(moe::Router::find(config.router.type)->info) || config.router.context || previous ||
           (config.capacity.factor && counts(moe::Admission::row(config.capacity.policy).info));
  }
  // Class C2: earlier steps count.
  bool lagged() const {
    const auto config = GetParam().config();
    return moe::Router::find(config.router.type)->info.causality == moe::Causality::kLagged ||
           config.balance.bias.update_rate > 0 || (config.router.null_experts && config.router.null_experts->target_k);
  }
};

TEST_P(Leak, NoTokenOfAnEvaluationSeesALaterOne) {
  model::Transformer m(config_of(GetParam()));
  EXPECT_EQ(leaks(m, false), 0);
  train_thresholds(m);
  EXPECT_EQ(leaks(m, false), 0);
}

TEST_P(Leak, TokensOfATrainingStepSeeLaterOnesOnlyUnderALeakyPolicy) {
  model::Transformer m(config_of(GetParam()));
  train_thresholds(m);
  EXPECT_EQ(leaks(m, true) > 0, leaky());
}

TEST_P(Leak, TokensOfATrainingStepSeeEarlierOnesOnlyUnderAPositionalMethod) {
  if (leaky()) GTEST_SKIP() << "class C3 sees all tokens";
  model::Transformer m(config_of(GetParam()));
  silence_attention(m);
  train_thresholds(m);
  EXPECT_EQ(changes(m, true).behind > 0, positional());
}

TEST_P(Leak, TokensOfATrainingStepSeeEarlierStepsOnlyUnderALaggedMethod) {
  model::Transformer m(config_of(GetParam()));
  const Batch batch = testing::random_batch(1, kLength, 23, 3);
  const Tensor before = hidden(m, batch, true);
  EXPECT_TRUE(hidden(m, batch, true).equal(before));
  change_state(m);
  EXPECT_EQ(!hidden(m, batch, true).equal(before), lagged());
}

INSTANTIATE_TEST_SUITE_P(Routers, Leak, ::testing::ValuesIn(testing::router_methods()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Merges, Leak, ::testing::ValuesIn(testing::merge_methods()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(All, Leak, ::testing::ValuesIn(testing::all_methods()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Compressions, Leak, ::testing::ValuesIn(testing::compression_methods()),
                         [](const auto& info) { return info.param.name; });

class LeakRanks : public Leak {};

TEST_P(LeakRanks, NoTokenOfAnEvaluationSeesALaterOneOrAnotherRanks) {
  test::run_ranks(2, [&](const comm::Group& ep) {
    const model::Transformer m(config_of(GetParam()), test::expert_mesh(ep));
    EXPECT_EQ(leaks(m, false), 0);
    // Rank 1 alone changes its tokens: nothing of rank 0 may change, in training neither.
    const Batch batch = testing::random_batch(1, kLength, 23, 3, ep.rank());
    const Batch other = testing::random_batch(1, kLength, 23, 3, 5 * ep.rank());
    for (const bool training : {false, true}) {
      const bool same = hidden(m, batch, training).equal(hidden(m, other, training));
      EXPECT_EQ(same, ep.rank() == 0);
    }
  });
}

TEST_P(LeakRanks, TokensOfATrainingStepSeeLaterOnesOnlyUnderALeakyPolicy) {
  test::run_ranks(2, [&](const comm::Group& ep) {
    const model::Transformer m(config_of(GetParam()), test::expert_mesh(ep));
    EXPECT_EQ(leaks(m, true) > 0, leaky());
  });
}

INSTANTIATE_TEST_SUITE_P(All, LeakRanks, ::testing::ValuesIn(testing::all_methods()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Routers, LeakRanks, ::testing::ValuesIn(testing::router_methods()),
                         [](const auto& info) { return info.param.name; });
INSTANTIATE_TEST_SUITE_P(Compressions, LeakRanks, ::testing::ValuesIn(testing::compression_methods()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave
