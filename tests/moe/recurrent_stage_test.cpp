// SPDX-License-Identifier: Apache-2.0
// The state that a recurrent router reads (methods.md 7.1), against ATen's own unit and autograd.
#include "moe/recurrent_stage.h"

#include <ATen/ops/gru_cell.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <map>

#include "kernels/tensor_checks.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using kernels::random_tensor;

constexpr int64_t kTokens = 19, kWidth = 6, kState = 5, kLayers = 3;

// Layers of nothing but states. Slots: inputs, then states.
struct Chain {
  nn::Parameters parameters;
  std::vector<RecurrentStage> stages;
  Batch batch = testing::random_batch(1, kTokens, 23, 1);
  RecurrentUnit unit{.input_3HH = add("input", {3 * kState, kState}),
                     .state_3HH = add("state", {3 * kState, kState}),
                     .input_bias_3H = add("input bias", {3 * kState}),
                     .state_bias_3H = add("state bias", {3 * kState})};

  explicit Chain(at::ScalarType dtype) {
    for (int l = 0; l < kLayers; ++l) {
      const RecurrentWeights weights{unit, add("projection", {kState, kWidth}, l), l + 1 < kLayers};
      RecurrentSlots slots{.input = l, .before = {}, .state = static_cast<int>(kLayers) + l};
      if (l > 0) slots.before = slots.state - 1;
      stages.emplace_back(nn::StageSite{"state", l}, parameters, weights, slots);
    }
    parameters.allocate(dtype, 1);
  }
  nn::ParameterId add(const std::string& name, std::vector<int64_t> shape, int layer = 0) {
    return parameters.add({.parts = {{name + std::to_string(layer), shape}}, .shape = shape, .init_std = 0.7});
  }
  Tensor input(int layer) const { return random_tensor({kTokens, kWidth}, dtype(), 10 + layer); }
  // What a layer's router would give its state.
  Tensor gradient(int layer) const { return random_tensor({kTokens, kState}, dtype(), 20 + layer); }
  at::ScalarType dtype() const { return parameters.flat(false).scalar_type(); }
};

struct Outcome {
  std::vector<Tensor> states, dinputs;
  std::map<std::string, Tensor> dparameters;
};

Outcome run(Chain& chain) {
  nn::Gradients gradients{at::zeros_like(chain.parameters.flat(false)), {}};
  nn::Frame frame(chain.batch, 2 * kLayers, kLayers, &gradients);
  Outcome outcome;
  for (int l = 0; l < kLayers; ++l) {
    frame.value(l) = chain.input(l);
    chain.stages[l].forward(frame);
    outcome.states.push_back(frame.value(static_cast<int>(kLayers) + l).clone());
  }
  for (int l = kLayers; l-- > 0;) {
    frame.add_grad(static_cast<int>(kLayers) + l, chain.gradient(l));
    chain.stages[l].backward_input(frame);
    chain.stages[l].backward_weight(frame);
  }
  for (int l = 0; l < kLayers; ++l) outcome.dinputs.push_back(frame.grad(l));
  for (const auto& p : chain.parameters.all()) outcome.dparameters[p.parts[0].name] = gradients.view(p).clone();
  return outcome;
}

Outcome reference(Chain& chain) {
  std::map<std::string, Tensor> leaves;
  for (const auto& p : chain.parameters.all())
    leaves[p.parts[0].name] = nn::view_of(chain.parameters.flat(false), p).detach().clone().requires_grad_(true);
  Outcome outcome;
  std::vector<Tensor> inputs;
  Tensor state = at::zeros({kTokens, kState}, chain.parameters.flat(false).options()), objective;
  for (int l = 0; l < kLayers; ++l) {
    inputs.push_back(chain.input(l).requires_grad_(true));
    const Tensor u = at::mm(inputs[l], leaves["projection" + std::to_string(l)].t());
    state = at::gru_cell(u, state, leaves["input0"], leaves["state0"], leaves["input bias0"], leaves["state bias0"]);
    outcome.states.push_back(state.detach());
    const Tensor term = (state * chain.gradient(l)).sum();
    objective = objective.defined() ? objective + term : term;
  }
  objective.backward();
  for (const Tensor& input : inputs) outcome.dinputs.push_back(input.grad());
  for (const auto& [name, leaf] : leaves) outcome.dparameters[name] = leaf.grad();
  return outcome;
}

void expect_near(const Tensor& got, const Tensor& expected, const std::string& what) {
  const double tolerance = got.scalar_type() == at::kDouble ? 1e-11 : 1e-4;
  EXPECT_LT((got - expected).abs().max().item<double>(), tolerance) << what;
}

TEST(RecurrentStage, IsAGatedUnitThatGoesFromLayerToLayer) {
  for (const auto dtype : kernels::kBothTypes) {
    Chain chain(dtype);
    const Outcome got = run(chain), expected = reference(chain);
    for (int l = 0; l < kLayers; ++l) expect_near(got.states[l], expected.states[l], "state");
  }
}

TEST(RecurrentStage, GradientsPassThroughTheStatesOfAllLayers) {
  for (const auto dtype : kernels::kBothTypes) {
    Chain chain(dtype);
    const Outcome got = run(chain), expected = reference(chain);
    for (int l = 0; l < kLayers; ++l) expect_near(got.dinputs[l], expected.dinputs[l], "input " + std::to_string(l));
    for (const auto& [name, gradient] : expected.dparameters) expect_near(got.dparameters.at(name), gradient, name);
  }
}

// Logits of the last MoE layer when the first layer's projection is another one and no expert gives anything, so that
// the stream is the same.
Tensor last_logits(bool recurrent, double factor) {
  auto config = testing::tiny_config();
  config.dtype = at::kDouble;
  if (recurrent) config.moe.router.recurrent = {.hidden_size = 8};
  model::Transformer m(config);
  for (const auto& p : m.parameters().all()) {
    Tensor value = nn::view_of(m.parameters().flat(p.expert), p);
    if (p.expert) value.zero_();
    if (p.parts[0].name == "layers.0.moe.router.projection.weight") value.mul_(factor);
    if (p.parts[0].name == "layers.0.moe.router.weight") value.mul_(factor);
  }
  const Batch batch = testing::random_batch(2, 9, 23, 3);
  nn::Frame frame = m.frame(batch, nullptr);
  for (const auto& stage : m.stages()) stage->forward(frame);
  return m.decision(frame, 1).choice.logits_TE.clone();
}

TEST(RecurrentRouter, AChoiceKnowsTheLayersBefore) {
  EXPECT_GT((last_logits(true, 3) - last_logits(true, 1)).abs().max().item<double>(), 1e-3);
  EXPECT_TRUE(last_logits(false, 3).equal(last_logits(false, 1))) << "the layers are joined by something else";
}

TEST(RecurrentRouter, AnEvaluationHasTheStatesOfTraining) {
  Chain chain(at::kFloat);
  nn::Frame frame(chain.batch, 2 * kLayers, kLayers, nullptr);
  for (int l = 0; l < kLayers; ++l) {
    frame.value(l) = chain.input(l);
    chain.stages[l].forward(frame);
  }
  EXPECT_TRUE(frame.value(2 * kLayers - 1).equal(run(chain).states.back()));
}

}  // namespace
}  // namespace conclave::moe
