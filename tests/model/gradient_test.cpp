// SPDX-License-Identifier: Apache-2.0
// The whole model in fp64 against finite differences: every hand-written backward at once.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "kernels/optimizer.h"
#include "kernels/tensor_checks.h"
#include "model/executors/sequential.h"
#include "support/moe_methods.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

struct Case {
  std::string name;
  std::function<void(model::TransformerConfig&)> change;
  bool taught = false;
};

// A teacher of width 6.
nn::TeacherSide some_teacher(const model::Transformer& m, const Batch& batch) {
  const auto numbers = [](std::vector<int64_t> sizes, uint64_t seed) {
    Tensor drawn = at::empty(sizes, at::kDouble);
    kernels::fill_normal(drawn, Random(seed, Purpose::kTest), 0, 1);
    return drawn;
  };
  return {.hidden_TD = numbers({batch.tokens_count(), 6}, 1),
          .head_VD = numbers({m.shape().vocab, 6}, 2),
          .weight = 0.4,
          .temperature = 1.5};
}

// What a step minimises: the cross entropy sum, and each auxiliary loss weighted by the targets of its micro-batch.
double objective(const model::Transformer& m, const Batch& batch, nn::Gradients* gradients, bool taught) {
  nn::Gradients scratch{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
  nn::Frame frame = m.frame(batch, gradients ? gradients : &scratch);  // training mode, so that capacity is the same
  if (taught) frame.set_teacher(some_teacher(m, batch));
  for (const auto& stage : m.stages()) stage->forward(frame);
  double total = frame.loss_sum;
  if (taught) total = (1 - frame.teacher()->weight) * total + frame.teacher()->weight * frame.teacher_loss_sum;
  std::vector<const moe::Decision*> storage;
  const auto view = m.loss_view(frame, storage);
  const auto& losses = m.balancer().losses();
  const auto own = m.balancer().coefficients(m.state());
  for (size_t i = 0; i < losses.size(); ++i) {
    const bool once = losses[i].scope == moe::Scope::kModel && losses[i].type == moe::LossType::kSwitch;
    for (size_t l = 0; l < (once ? 1 : storage.size()); ++l) {
      // An l1 loss is the mean over the layers of its values there.
      const double of_layer = losses[i].type == moe::LossType::kL1 ? 1.0 / static_cast<double>(storage.size()) : 1.0;
      total += own[i].value_or(losses[i].coef) * of_layer * storage[l]->statistics.targets() *
               m.balancer().value(view, static_cast<int>(i), static_cast<int>(l));
    }
  }
  if (!gradients) return total;
  nn::Frame again = m.frame(batch, gradients);
  if (taught) again.set_teacher(some_teacher(m, batch));
  gradients->dense.zero_();
  gradients->experts[0].zero_();
  gradients->fresh = true;
  model::SequentialExecutor(m).run(again);
  return total;
}

// As after some training: means that stand in for experts, and routers that start from zero.
void train(model::Transformer& m) {
  for (const auto& layer : m.state().layers)
    if (const Tensor means = layer.get("default_outputs"); means.defined())
      means.copy_(kernels::random_tensor(means.sizes().vec(), at::kFloat, 4));
  for (const auto& p : m.parameters().all()) {
    if (p.kind != nn::ParameterKind::kRouter) continue;
    Tensor weight = nn::view_of(m.parameters().flat(false), p);
    if (weight.abs().max().item<double>() == 0)
      weight.copy_(kernels::random_tensor(weight.sizes().vec(), at::kDouble, p.parts[0].name.size()) * 0.2);
  }
}

class GradientTest : public ::testing::TestWithParam<Case> {};

TEST_P(GradientTest, EqualsFiniteDifferences) {
  auto config = testing::tiny_config();
  config.dtype = at::kDouble;
  GetParam().change(config);
  model::Transformer m(config);
  train(m);
  Batch batch = testing::random_batch(2, 9, config.model.vocab_size, 3);
  batch.loss_mask[4] = 0;
  for (int i = 15; i < 18; ++i) batch.segment_ids[i] = -1, batch.loss_mask[i] = 0;  // padding at the end of the second
  nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
  objective(m, batch, &gradients, GetParam().taught);
  int checked = 0;
  for (const auto& parameter : m.parameters().all()) {
    Tensor value = nn::view_of(m.parameters().flat(parameter.expert), parameter).view({-1});
    const Tensor gradient = gradients.view(parameter).view({-1});
    for (int64_t i = 0; i < value.numel(); i += std::max<int64_t>(1, value.numel() / 5)) {
      const double saved = value[i].item<double>(), h = 1e-6;
      value[i] = saved + h;
      const double up = objective(m, batch, nullptr, GetParam().taught);
      value[i] = saved - h;
      const double down = objective(m, batch, nullptr, GetParam().taught);
      value[i] = saved;
      const double expected = (up - down) / (2 * h);
      EXPECT_NEAR(gradient[i].item<double>(), expected, 1e-6 * std::max(1.0, std::abs(expected)))
          << parameter.parts[0].name << " element " << i;
      ++checked;
    }
  }
  EXPECT_GT(checked, 100);
}

std::vector<Case> cases() {
  using model::TransformerConfig;
  using namespace moe;
  const auto loss = [](BalanceLoss loss) { return [loss](TransformerConfig& c) { c.moe.balance.losses = {loss}; }; };
  return {
      {"Plain", [](TransformerConfig&) {}},
      {"DefaultMoe",
       [](TransformerConfig& c) {
         c.moe.router.type = "default_moe";
         c.moe.router.routed_scaling_factor = 1.5;
         c.moe.balance.losses = {{.coef = 0.1}};
       }},
      {"Lory",
       [](TransformerConfig& c) {
         c.moe.router.type = "lory", c.moe.router.lory = {.segment = 4}, c.moe.top_k = 1, c.moe.num_shared_experts = 1;
       }},
      {"Base", [](TransformerConfig& c) { c.moe.router.type = "base", c.moe.top_k = 1; }},
      {"ExpertDropout", [](TransformerConfig& c) { c.moe.experts.dropout = 0.4; }},
      {"Hmoe",
       [](TransformerConfig& c) {
         c.moe.expert_hidden_size = std::vector<int64_t>{4, 12, 20, 7};
         c.moe.balance.losses = {{.type = LossType::kPenalty, .coef = 0.5}, {.type = LossType::kEntropy, .coef = 0.2}};
       }},
      {"HmoeDropout",
       [](TransformerConfig& c) {
         c.moe.expert_hidden_size = std::vector<int64_t>{20, 7, 7, 2};
         c.moe.experts.dropout = 0.4;
       }},
      {"Lsh",
       [](TransformerConfig& c) {
         c.moe.dispatch.compression = {.hashes = 1, .dimensions = 2};
         c.moe.router.norm_topk_prob = true;
       }},
      {"DenseFirst",
       [](TransformerConfig& c) {
         c.moe.layers = LayerPattern{1, 1};
       }},
      {"Renormalised", [](TransformerConfig& c) { c.moe.router.norm_topk_prob = true; }},
      {"SoftmaxOverChosen", [](TransformerConfig& c) { c.moe.router.score_before_topk = false; }},
      {"SigmoidScaled",
       [](TransformerConfig& c) {
         c.moe.router.score = Score::kSigmoid, c.moe.router.norm_topk_prob = true,
         c.moe.router.routed_scaling_factor = 2.5;
       }},
      {"QkNormHeadBias", [](TransformerConfig& c) { c.model.qk_norm = model::QkNorm::kHead, c.model.qkv_bias = true; }},
      {"QkNormFull", [](TransformerConfig& c) { c.model.qk_norm = model::QkNorm::kFull; }},
      {"SharedGate", [](TransformerConfig& c) { c.moe.num_shared_experts = 1, c.moe.shared_gate = true; }},
      {"PostNormTied",
       [](TransformerConfig& c) {
         c.model.norm_placement = model::NormPlacement::kPost, c.model.tie_embeddings = true,
         c.moe.num_shared_experts = 2;
       }},
      {"DocumentMask", [](TransformerConfig& c) { c.document_mask = true; }},
      {"CapacityPosition", [](TransformerConfig& c) { c.moe.capacity.factor = 0.7, c.moe.capacity.min = 1; }},
      {"CapacityScoreRenormalised",
       [](TransformerConfig& c) {
         c.moe.capacity.factor = 0.7, c.moe.capacity.min = 1, c.moe.capacity.policy = DropPolicy::kScore;
         c.moe.capacity.renormalize = true;
       }},
      {"CapacityOfDevices",
       [](TransformerConfig& c) {
         c.moe.capacity.factor = 0.7, c.moe.capacity.min = 1;
         c.moe.capacity.policy = DropPolicy::kDevice, c.moe.capacity.devices = 2;
       }},
      {"GumbelSample", [](TransformerConfig& c) { c.moe.router.noise = "gumbel", c.moe.top_k = 1; }},
      {"GumbelSecond",
       [](TransformerConfig& c) { c.moe.router.second = "gumbel", c.moe.router.norm_topk_prob = true; }},
      {"FanIn", [](TransformerConfig& c) { c.model.init = model::Init::kFanIn; }},
      {"Parallel", [](TransformerConfig& c) { c.moe.branch = Branch::kParallel; }},
      {"PrMoe",
       [](TransformerConfig& c) {
         c.moe.branch = Branch::kParallel, c.moe.branch_gate = "softmax",
         c.moe.num_experts = std::vector<int64_t>{2, 4};
       }},
      {"Arctic", [](TransformerConfig& c) { c.moe.branch = Branch::kResidual, c.moe.num_shared_experts = 1; }},
      {"Generalist", [](TransformerConfig& c) { c.moe.num_shared_experts = 1, c.moe.shared_merge = "mean"; }},
      {"Fallback",
       [](TransformerConfig& c) {
         c.moe.fallback = {.hidden_size = 8}, c.moe.capacity.factor = 0.5, c.moe.capacity.min = 1;
       }},
      {"ContextRouter",
       [](TransformerConfig& c) {
         c.moe.router.context = true, c.moe.router.share = "model", c.document_mask = true;
         c.moe.balance.losses = {{LossType::kSwitch, 0.5, Level::kMicro, Convention::kMegatron, Scope::kLayer}};
       }},
      {"RecurrentRouter",
       [](TransformerConfig& c) {
         c.moe.router.recurrent = {.hidden_size = 5};
         c.moe.balance.losses = {{LossType::kSwitch, 0.5, Level::kMicro, Convention::kMegatron, Scope::kLayer}};
       }},
      // The state passes a dense layer by.
      {"RecurrentOverThreeLayers",
       [](TransformerConfig& c) {
         c.model.num_layers = 4, c.moe.layers = std::vector<int64_t>{1, 0, 1, 1};
         c.moe.router.recurrent = {.hidden_size = 8}, c.moe.router.norm_topk_prob = true;
       }},
      // Nothing stands in: the gradient is exact.
      {"DenseBackpropGroupOfAll",
       [](TransformerConfig& c) { c.moe.router.type = "dense_backprop_group", c.moe.top_k = 4; }},
      {"ZeroCompute",
       [](TransformerConfig& c) {
         c.moe.router.type = "zero_compute";
         c.moe.router.zero_compute = {.zero = 1, .copy = 1, .constant = 2};
         c.moe.balance.losses = {{LossType::kSwitch, 0.5, Level::kMicro, Convention::kMegatron, Scope::kLayer}};
       }},
      {"Taught", [](TransformerConfig&) {}, true},
      // With a head of its own, which begins as zero, there would be no gradient below it.
      {"Mup",
       [](TransformerConfig& c) {
         c.model.init = model::Init::kMup, c.model.tie_embeddings = true;
         c.model.mup = {48, 16, 2};
       }},
      {"MupTaught",
       [](TransformerConfig& c) {
         c.model.init = model::Init::kMup, c.model.tie_embeddings = true;
         c.model.mup = {24, 16, 2};
       },
       true},
      {"AuxMegatron", loss({LossType::kSwitch, 0.5, Level::kMicro, Convention::kMegatron, Scope::kLayer})},
      {"AuxSwitch", loss({LossType::kSwitch, 0.5, Level::kMicro, Convention::kSwitch, Scope::kLayer})},
      {"AuxHuggingFace", loss({LossType::kSwitch, 0.5, Level::kMicro, Convention::kHuggingface, Scope::kModel})},
      {"AuxSequence", loss({LossType::kSwitch, 0.5, Level::kSequence, Convention::kDeepseek, Scope::kLayer})},
      {"AuxGlobal", loss({LossType::kSwitch, 0.5, Level::kGlobal, Convention::kMegatron, Scope::kLayer})},
      {"ZLoss", loss({LossType::kZ, 0.3})},
      {"SigmoidAuxAndZ",
       [](TransformerConfig& c) {
         c.moe.router.score = Score::kSigmoid;
         c.moe.balance.losses = {{LossType::kSwitch, 0.5, Level::kMicro, Convention::kMegatron, Scope::kLayer},
                                 {LossType::kZ, 0.3}};
       }},
  };
}

INSTANTIATE_TEST_SUITE_P(All, GradientTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

// Every method whose backward is the derivative of its forward. Two are not, and have tests of what they are:
// SparseMixer goes backward by the probability without its multiplier
// (SparseMixer.TheMeanGradientIsTheSamplingGradientOfALinearLoss), grouped dense backpropagation by experts that were
// not computed (DenseBackpropGroup).
std::vector<Case> method_cases() {
  std::vector<Case> cases;
  for (const auto& method : testing::router_methods()) {
    if (method.name == "SparseMixer" || method.name == "DenseBackpropGroup") continue;
    cases.push_back({method.name, [method](model::TransformerConfig& c) {
                       const auto width = c.moe.expert_hidden_size;
                       c.moe = method.config();
                       if (!c.moe.expert_hidden_size) c.moe.expert_hidden_size = width;
                     }});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Methods, GradientTest, ::testing::ValuesIn(method_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave
