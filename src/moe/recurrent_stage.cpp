// SPDX-License-Identifier: Apache-2.0
#include "moe/recurrent_stage.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "kernels/rows.h"
#include "nn/linear.h"

namespace conclave::moe {
namespace {

template <typename T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

// Gates and the new state from both sides' sums; of_input becomes the gates.
struct Step {
  Tensor of_input_T3H, of_state_T3H, before_TH;
  Tensor proposed_TH, state_TH;  // written
};

template <typename T>
void advance(const Step& step) {
  const int64_t H = step.before_TH.size(1), tokens = step.before_TH.size(0);
  const auto gates = elements<T>(step.of_input_T3H), s = elements<T>(step.of_state_T3H),
             before = elements<T>(step.before_TH), proposed = elements<T>(step.proposed_TH),
             state = elements<T>(step.state_TH);
  for (int64_t t = 0; t < tokens; ++t) {
    T* g = &gates[t * 3 * H];
    const T* of_state = &s[t * 3 * H];
    for (int64_t i = 0; i < H; ++i) {
      const T r = sigmoid(g[i] + of_state[i]), z = sigmoid(g[H + i] + of_state[H + i]);
      proposed[t * H + i] = of_state[2 * H + i];
      const T n = std::tanh(g[2 * H + i] + r * of_state[2 * H + i]);
      g[i] = r, g[H + i] = z, g[2 * H + i] = n;
      state[t * H + i] = (1 - z) * n + z * before[t * H + i];
    }
  }
}

// From the new state's gradient those of both sides' sums and, but for what passes B, of the state before.
struct StepBack {
  Tensor dstate_TH, gates_T3H, proposed_TH, before_TH;
  Tensor of_input_T3H, of_state_T3H, dbefore_TH;  // written
};

template <typename T>
void go_back(const StepBack& step) {
  const int64_t H = step.before_TH.size(1), tokens = step.before_TH.size(0);
  const auto dstate = elements<T>(step.dstate_TH), gates = elements<T>(step.gates_T3H),
             proposed = elements<T>(step.proposed_TH), before = elements<T>(step.before_TH),
             di = elements<T>(step.of_input_T3H), ds = elements<T>(step.of_state_T3H),
             dbefore = elements<T>(step.dbefore_TH);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < H; ++i) {
      const int64_t at = t * H + i, first = t * 3 * H + i;
      const T r = gates[first], z = gates[first + H], n = gates[first + 2 * H];
      const T dn = dstate[at] * (1 - z) * (1 - n * n);
      di[first] = ds[first] = dn * proposed[at] * r * (1 - r);
      di[first + H] = ds[first + H] = dstate[at] * (before[at] - n) * z * (1 - z);
      di[first + 2 * H] = dn;
      ds[first + 2 * H] = dn * r;
      dbefore[at] = dstate[at] * z;
    }
  }
}

}  // namespace

std::vector<nn::Slot> RecurrentStage::inputs() const {
  std::vector<nn::Slot> inputs{slots_.input};
  if (slots_.before) inputs.push_back(*slots_.before);
  return inputs;
}

std::vector<nn::ParameterId> RecurrentStage::parameters() const {
  return {weights_.projection_HD, weights_.unit.input_3HH, weights_.unit.state_3HH, weights_.unit.input_bias_3H,
          weights_.unit.state_bias_3H};
}

Tensor RecurrentStage::state_before(nn::Frame& frame, const Tensor& like_TH) const {
  return slots_.before ? frame.value(*slots_.before) : at::zeros(like_TH.sizes(), like_TH.options());
}

void RecurrentStage::forward(nn::Frame& frame) {
  const auto value = [&](nn::ParameterId id) { return parameters_.value(id); };
  const Tensor u = nn::linear_forward(frame.value(slots_.input), value(weights_.projection_HD));
  const Tensor before = state_before(frame, u);
  Step step{.of_input_T3H = nn::linear_forward(u, value(weights_.unit.input_3HH)),
            .of_state_T3H = nn::linear_forward(before, value(weights_.unit.state_3HH)),
            .before_TH = before,
            .proposed_TH = at::empty_like(u),
            .state_TH = at::empty_like(u)};
  kernels::add_bias(step.of_input_T3H, value(weights_.unit.input_bias_3H));
  kernels::add_bias(step.of_state_T3H, value(weights_.unit.state_bias_3H));
  by_dtype(u, [&](auto zero) { advance<decltype(zero)>(step); });
  frame.value(slots_.state) = step.state_TH;
  if (!frame.training()) return;
  auto& saved = frame.saved<Saved>(index());
  saved.u_TH = u;
  saved.gates_T3H = step.of_input_T3H;
  saved.proposed_TH = step.proposed_TH;
}

void RecurrentStage::backward_input(nn::Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  const StepBack step{.dstate_TH = frame.grad(slots_.state),
                      .gates_T3H = saved.gates_T3H,
                      .proposed_TH = saved.proposed_TH,
                      .before_TH = state_before(frame, saved.u_TH),
                      .of_input_T3H = at::empty_like(saved.gates_T3H),
                      .of_state_T3H = at::empty_like(saved.gates_T3H),
                      .dbefore_TH = at::empty_like(saved.u_TH)};
  by_dtype(saved.u_TH, [&](auto zero) { go_back<decltype(zero)>(step); });
  saved.of_input_T3H = step.of_input_T3H;
  saved.of_state_T3H = step.of_state_T3H;
  saved.du_TH = nn::linear_backward_input(saved.of_input_T3H, parameters_.value(weights_.unit.input_3HH));
  frame.add_grad(slots_.input, nn::linear_backward_input(saved.du_TH, parameters_.value(weights_.projection_HD)));
  if (!slots_.before) return;
  Tensor dbefore = step.dbefore_TH;
  kernels::add(dbefore, nn::linear_backward_input(saved.of_state_T3H, parameters_.value(weights_.unit.state_3HH)));
  frame.add_grad(*slots_.before, dbefore);
}

void RecurrentStage::backward_weight(nn::Frame& frame) {
  const Saved& saved = frame.saved<Saved>(index());
  nn::Gradients& gradients = frame.gradients();
  const bool fresh = gradients.fresh && !weights_.adds;
  const auto view = [&](nn::ParameterId id) { return gradients.view(parameters_[id]); };
  nn::linear_backward_weight(saved.du_TH, frame.value(slots_.input), gradients.fresh, view(weights_.projection_HD));
  nn::linear_backward_weight(saved.of_input_T3H, saved.u_TH, fresh, view(weights_.unit.input_3HH));
  // From a state of zero B learns nothing, and its gradient began as zero.
  if (slots_.before)
    nn::linear_backward_weight(saved.of_state_T3H, frame.value(*slots_.before), fresh, view(weights_.unit.state_3HH));
  Tensor of_input = view(weights_.unit.input_bias_3H), of_state = view(weights_.unit.state_bias_3H);
  kernels::sum_columns(saved.of_input_T3H, of_input);
  kernels::sum_columns(saved.of_state_T3H, of_state);
  frame.forget(index());
}

}  // namespace conclave::moe
