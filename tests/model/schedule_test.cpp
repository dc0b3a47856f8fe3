// SPDX-License-Identifier: Apache-2.0
// The planned order: what runs while an exchange is under way, that everything runs once and after what it reads, and
// that a walk leaves nothing behind.
#include "model/schedule.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <set>

#include "model/executors/sequential.h"
#include "model/walk.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using model::Operation;
using model::Verb;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::StartsWith;

model::TransformerConfig config_with(int64_t chunks, model::Recompute recompute = model::Recompute::kNone) {
  auto config = testing::tiny_config();
  config.moe.num_shared_experts = 1;
  config.chunks = chunks;
  config.memory.recompute = recompute;
  config.dtype = at::kFloat;
  return config;
}

std::string text_of(const model::Transformer& m, const Operation& operation) {
  const auto verb = [&] {
    switch (operation.verb) {
      case Verb::kStartForward:
      case Verb::kStartBackward:
      case Verb::kStartAgain:
        return "start ";
      case Verb::kFinishForward:
      case Verb::kFinishBackward:
      case Verb::kFinishAgain:
        return "finish ";
      case Verb::kFree:
        return "free ";
      case Verb::kBackwardAside:
        return "aside ";
      case Verb::kAddAside:
        return "add ";
      case Verb::kWeights:
        return "weights ";
      default:
        return "";
    }
  };
  return verb() + m.stages()[operation.stage]->name();
}

// The operations of one block, between those named, without what frees memory.
std::vector<std::string> between(const model::Transformer& m, const std::vector<Operation>& operations,
                                 const std::string& first, const std::string& last) {
  std::vector<std::string> texts;
  bool inside = false;
  for (const auto& operation : operations) {
    if (operation.verb == Verb::kFree) continue;
    const std::string text = text_of(m, operation);
    inside |= text == first;
    if (inside) texts.push_back(text);
    if (text == last) inside = false;
  }
  return texts;
}

TEST(Schedule, ASharedExpertRunsWhileRowsTravel) {
  const model::Transformer m(config_with(1));
  const auto schedule = plan_schedule(m.stages(), m.stage_memory());
  EXPECT_THAT(between(m, schedule.forward, "layers.0.ffn_norm", "layers.0.ffn_residual"),
              ElementsAre("layers.0.ffn_norm", "layers.0.moe.route", "start layers.0.moe.dispatch",
                          "layers.0.moe.shared", "finish layers.0.moe.dispatch", "layers.0.moe.experts",
                          "start layers.0.moe.combine", "finish layers.0.moe.combine", "layers.0.ffn_residual"));
}

TEST(Schedule, WeightGradientsRunWhileGradientsTravelAndSumsKeepTheirOrder) {
  const model::Transformer m(config_with(1));
  const auto schedule = plan_schedule(m.stages(), m.stage_memory());
  EXPECT_THAT(between(m, schedule.backward, "start layers.0.moe.combine", "layers.0.ffn_norm"),
              ElementsAre("start layers.0.moe.combine", "weights layers.0.ffn_residual", "aside layers.0.moe.shared",
                          "weights layers.0.moe.shared", "finish layers.0.moe.combine", "layers.0.moe.experts",
                          "start layers.0.moe.dispatch", "weights layers.0.moe.combine", "weights layers.0.moe.experts",
                          "finish layers.0.moe.dispatch", "weights layers.0.moe.dispatch", "layers.0.moe.route",
                          "weights layers.0.moe.route", "add layers.0.moe.shared", "layers.0.ffn_norm"));
  // Local rows are dispatched again in backward: the first window of a layer, for the weights of the one above.
  const auto again = between(m, schedule.backward, "start layers.0.moe.dispatch", "finish layers.0.moe.dispatch");
  EXPECT_THAT(
      std::vector<std::string>(again.begin(), again.begin() + 8),
      ElementsAre("start layers.0.moe.dispatch", "weights layers.1.moe.dispatch", "weights layers.1.moe.route",
                  "weights layers.1.ffn_norm", "weights layers.1.attention_residual", "weights layers.1.attention",
                  "weights layers.1.attention_norm", "finish layers.0.moe.dispatch"));
}

TEST(Schedule, ChunksFollowOneAnother) {
  const model::Transformer m(config_with(2));
  const auto schedule = plan_schedule(m.stages(), m.stage_memory());
  EXPECT_THAT(between(m, schedule.forward, "layers.0.moe.cut", "layers.0.moe.join"),
              ElementsAre("layers.0.moe.cut", "start layers.0.moe.dispatch.0", "start layers.0.moe.dispatch.1",
                          "layers.0.moe.shared", "finish layers.0.moe.dispatch.0", "layers.0.moe.experts.0",
                          "start layers.0.moe.combine.0", "finish layers.0.moe.dispatch.1", "layers.0.moe.experts.1",
                          "start layers.0.moe.combine.1", "finish layers.0.moe.combine.0",
                          "finish layers.0.moe.combine.1", "layers.0.moe.join"));
  auto backward = between(m, schedule.backward, "layers.0.moe.join", "layers.0.moe.cut");
  std::erase_if(backward, [](const std::string& text) {
    return text.starts_with("weights ") || text.find("shared") != std::string::npos;
  });
  EXPECT_THAT(backward,
              ElementsAre("layers.0.moe.join", "start layers.0.moe.combine.1", "start layers.0.moe.combine.0",
                          "finish layers.0.moe.combine.1", "layers.0.moe.experts.1", "start layers.0.moe.dispatch.1",
                          "finish layers.0.moe.combine.0", "layers.0.moe.experts.0", "start layers.0.moe.dispatch.0",
                          "finish layers.0.moe.dispatch.1", "finish layers.0.moe.dispatch.0", "layers.0.moe.cut"));
}

TEST(Schedule, EveryStageRunsOnceInEitherDirection) {
  for (const int64_t chunks : {1, 3}) {
    const model::Transformer m(config_with(chunks, model::Recompute::kFull));
    const auto schedule = plan_schedule(m.stages(), m.stage_memory());
    std::multiset<std::pair<Verb, size_t>> seen;
    for (const auto* part : {&schedule.forward, &schedule.backward})
      for (const auto& operation : *part) seen.insert({operation.verb, operation.stage});
    for (size_t s = 0; s < m.stages().size(); ++s) {
      const auto count = [&](std::initializer_list<Verb> verbs) {
        size_t sum = 0;
        for (const Verb verb : verbs) sum += seen.count({verb, s});
        return sum;
      };
      SCOPED_TRACE(m.stages()[s]->name());
      EXPECT_EQ(count({Verb::kForward, Verb::kFinishForward}), 1u);
      EXPECT_EQ(count({Verb::kStartForward}), count({Verb::kFinishForward}));
      EXPECT_EQ(count({Verb::kBackward, Verb::kBackwardAside, Verb::kFinishBackward}), 1u);
      EXPECT_EQ(count({Verb::kStartBackward}), count({Verb::kFinishBackward}));
      EXPECT_EQ(count({Verb::kBackwardAside}), count({Verb::kAddAside}));
      EXPECT_EQ(count({Verb::kWeights}), 1u);
      EXPECT_EQ(count({Verb::kFree}), 1u);
    }
  }
}

// The values and gradients that a frame holds.
std::vector<std::string> held(const model::Transformer& m, nn::Frame& frame) {
  std::vector<std::string> names;
  for (nn::Slot slot = 0; slot < m.slots().count(); ++slot) {
    if (frame.value(slot).defined()) names.push_back("value " + m.slots()[slot]);
    if (frame.grad(slot).defined()) names.push_back("gradient " + m.slots()[slot]);
  }
  return names;
}

TEST(Walk, HoldsWhatTheSequentialExecutorHolds) {
  at::set_num_threads(1);
  const Batch batch = testing::random_batch(2, 16, 23, 1);
  for (const int64_t chunks : {1, 3}) {
    for (const auto recompute : {model::Recompute::kNone, model::Recompute::kSelective, model::Recompute::kFull}) {
      const model::Transformer m(config_with(chunks, recompute));
      const auto schedule = plan_schedule(m.stages(), m.stage_memory());
      nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
      nn::Frame sequential = m.frame(batch, &gradients), walked = m.frame(batch, &gradients);
      model::SequentialExecutor(m).forward(sequential);
      const model::Schedule forward_only{schedule.forward, {}};
      for (model::Walk walk(m, forward_only, walked, nullptr); !walk.done();) walk.advance();
      EXPECT_EQ(held(m, walked), held(m, sequential)) << "between forward and backward";
      for (model::Walk walk(m, {{}, schedule.backward}, walked, nullptr); !walk.done();) walk.advance();
      EXPECT_THAT(held(m, walked), ElementsAre()) << "after backward";
    }
  }
}

}  // namespace
}  // namespace conclave
