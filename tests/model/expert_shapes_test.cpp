// SPDX-License-Identifier: Apache-2.0
// What stands beside the experts of a layer: a dense FFN (Arctic, PR-MoE), a generalist, a fallback expert (methods.md
// 1.8, 1.9, 1.21, 1.23, 8).
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <map>

#include "kernels/tensor_checks.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using Change = std::function<void(moe::MoeConfig&)>;

model::TransformerConfig config_of(const Change& change) {
  auto config = testing::tiny_config();
  config.dtype = at::kDouble;
  change(config.moe);
  return config;
}

std::map<std::string, Tensor> by_name(model::Transformer& m) {
  std::map<std::string, Tensor> found;
  for (const auto& p : m.parameters().all()) {
    const Tensor whole = nn::view_of(m.parameters().flat(p.expert), p);
    int64_t row = 0;
    for (const auto& part : p.parts) {
      found[part.name] = whole.narrow(0, row, part.shape[0]);
      row += part.shape[0];
    }
  }
  return found;
}

void set(model::Transformer& m, const std::string& what, double value) {
  int64_t count = 0;
  for (auto& [name, weight] : by_name(m))
    if (name.find(what) != std::string::npos) weight.fill_(value), ++count;
  ASSERT_GT(count, 0) << what;
}

Tensor hidden(const model::Transformer& m, bool training = false) {
  const Batch batch = testing::random_batch(2, 9, 23, 3);
  nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
  nn::Frame frame = m.frame(batch, training ? &gradients : nullptr);
  for (const auto& stage : m.stages()) stage->forward(frame);
  return m.hidden(frame).clone();
}

double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// Every part that both have starts alike: weights are functions of their names.
const Change kDense = [](moe::MoeConfig& c) { c.layers = std::vector<int64_t>{0, 0}; };
const Change kPlain = [](moe::MoeConfig&) {};
const Change kArctic = [](moe::MoeConfig& c) { c.branch = moe::Branch::kResidual; };
const Change kGated = [](moe::MoeConfig& c) { c.branch = moe::Branch::kParallel, c.branch_gate = "softmax"; };

TEST(ExpertShapes, ArcticWithSilentExpertsIsTheDenseModel) {
  model::Transformer arctic(config_of(kArctic)), dense(config_of(kDense));
  EXPECT_GT(distance(hidden(arctic), hidden(dense)), 1e-3);
  for (auto& [name, weight] : by_name(arctic))
    if (name.find("moe.experts") != std::string::npos && name.find("down") != std::string::npos) weight.fill_(0);
  EXPECT_EQ(distance(hidden(arctic), hidden(dense)), 0.0);
}

TEST(ExpertShapes, ArcticsExpertsReadTheBlocksInput) {
  for (const bool residual : {true, false}) {
    model::Transformer m(config_of(residual ? kArctic : kPlain));
    const Batch batch = testing::random_batch(2, 9, 23, 3);
    const auto logits = [&](int layer) {
      nn::Frame frame = m.frame(batch, nullptr);
      for (const auto& stage : m.stages()) stage->forward(frame);
      return m.decision(frame, layer).choice.logits_TE.clone();
    };
    const Tensor first = logits(0), second = logits(1);
    set(m, "layers.0.attention.o.", 0.3);
    EXPECT_EQ(logits(0).equal(first), residual) << "attention of the same block";
    EXPECT_FALSE(logits(1).equal(second)) << "and of a block before";
  }
}

TEST(ExpertShapes, PrMoeGatesBetweenTheExpertsAndTheDenseFfn) {
  model::Transformer gated(config_of(kGated)), plain(config_of(kPlain)), dense(config_of(kDense));
  set(gated, "branch_gate.weight", 0);
  for (const bool experts : {true, false}) {
    for (auto& [name, weight] : by_name(gated))
      if (name.find("branch_gate.bias") != std::string::npos)
        weight.copy_(at::tensor({experts ? 60.0 : -60.0, experts ? -60.0 : 60.0}, at::kDouble));
    EXPECT_LT(distance(hidden(gated), hidden(experts ? plain : dense)), 1e-12);
    EXPECT_GT(distance(hidden(gated), hidden(experts ? dense : plain)), 1e-3);
  }
}

// Every expert, shared or not, gets the first one's weights.
void make_equal(model::Transformer& m) {
  auto weights = by_name(m);
  for (auto& [name, weight] : weights) {
    const size_t experts = name.find("moe.");
    if (experts == std::string::npos || name.find("router") != std::string::npos) continue;
    const std::string part = name.substr(name.substr(0, name.rfind('.')).rfind('.'));
    weight.copy_(weights.at(name.substr(0, experts) + "moe.experts.0" + part));
  }
}

TEST(ExpertShapes, AGeneralistsMeanOfEqualBranchesIsThatBranch) {
  const auto shared = [](const char* merge) {
    return [merge](moe::MoeConfig& c) {
      c.num_shared_experts = 1, c.shared_merge = merge, c.router.norm_topk_prob = true;
    };
  };
  const auto equal = [](const Change& change) {
    model::Transformer m(config_of(change));
    make_equal(m);
    return hidden(m);
  };
  // One expert and nothing else.
  const Tensor alone = equal([](moe::MoeConfig& c) { c.router.norm_topk_prob = true; });
  EXPECT_LT(distance(equal(shared("mean")), alone), 1e-12);
  EXPECT_GT(distance(equal(shared("add")), alone), 1e-3);
}

TEST(ExpertShapes, AGeneralistThatIsAddedGivesEqualBranchesTwice) {
  model::Transformer added(
      config_of([](moe::MoeConfig&c) { c.num_shared_experts = 1, c.router.norm_topk_prob = true; })),
      twice(config_of([](moe::MoeConfig&c) { c.router.norm_topk_prob = true; }));
  make_equal(added), make_equal(twice);
  for (auto& [name, weight] : by_name(twice))
    if (name.find("moe.experts") != std::string::npos && name.find("down") != std::string::npos) weight.mul_(2);
  EXPECT_LT(distance(hidden(added), hidden(twice)), 1e-12);
}

TEST(ExpertShapes, AGeneralistWeighsAsMuchAsOneOfTheChosen) {
  const auto shared = [](moe::MoeConfig& c) { c.num_shared_experts = 1, c.shared_merge = "mean"; };
  model::Transformer mean(config_of(shared)), plain(config_of(kPlain));
  // Without what the shared expert gives, experts count for 2/3.
  set(mean, "moe.shared.down", 0);
  for (auto& [name, weight] : by_name(mean))
    if (name.find("moe.experts") != std::string::npos && name.find("down") != std::string::npos) weight.mul_(1.5);
  EXPECT_LT(distance(hidden(mean), hidden(plain)), 1e-12);
}

Change fallback(std::optional<double> factor) {
  return [factor](moe::MoeConfig& c) {
    c.capacity.factor = factor, c.capacity.min = 1;
    c.fallback = {.hidden_size = 12};
  };
}

TEST(ExpertShapes, AFallbackExpertChangesNothingWhereNothingIsRefused) {
  model::Transformer m(config_of(fallback(100))), plain(config_of(kPlain));
  EXPECT_EQ(distance(hidden(m, true), hidden(plain, true)), 0.0);
}

TEST(ExpertShapes, AFallbackExpertIsTheDenseFfnTimesTheWeightsWhereAllIsRefused) {
  constexpr double kScale = 2.5;  // the sum of a token's weights
  model::Transformer m(config_of([](moe::MoeConfig& c) {
    fallback(0.0)(c);
    c.capacity.min = 0;
    c.router.norm_topk_prob = true, c.router.routed_scaling_factor = kScale;
  }));
  auto config = config_of(kDense);
  config.model.ffn_hidden_size = 12;
  model::Transformer dense(config);
  auto own = by_name(m);
  for (auto& [name, weight] : by_name(dense)) {
    const size_t ffn = name.find(".ffn.");
    if (ffn == std::string::npos) continue;
    weight.copy_(own.at(name.substr(0, ffn) + ".moe.fallback." + name.substr(ffn + 5)));
    if (name.find("down") != std::string::npos) weight.mul_(kScale);
  }
  EXPECT_LT(distance(hidden(m, true), hidden(dense, true)), 1e-12);
}

TEST(ExpertShapes, AFallbackExpertEqualToTheOthersLosesNoToken) {
  model::Transformer m(config_of(fallback(0.3))), dropless(config_of(kPlain));
  auto limited = fallback(0.3);
  model::Transformer without(config_of([&](moe::MoeConfig& c) { limited(c), c.fallback.reset(); }));
  for (auto* one : {&m, &dropless, &without}) make_equal(*one);
  EXPECT_LT(distance(hidden(m, true), hidden(dropless, true)), 1e-12);
  EXPECT_GT(distance(hidden(without, true), hidden(dropless, true)), 1e-3) << "many are refused";
}

}  // namespace
}  // namespace conclave
