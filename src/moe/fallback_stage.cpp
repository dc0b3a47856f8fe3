// SPDX-License-Identifier: Apache-2.0
#include "moe/fallback_stage.h"

#include <ATen/ops/zeros.h>

#include "kernels/row_terms.h"

namespace conclave::moe {
namespace {

// Calls body(refused pick, its token among the decision's own).
template <typename Body>
void for_each_lost(const Decision& decision, const Body& body) {
  const auto& offsets = decision.choice.picks.offsets_T1;
  int64_t token = 0;
  for (const int32_t pick : decision.lost_C) {
    while (offsets[decision.first_token + token + 1] <= pick) ++token;
    body(pick, token);
  }
}

}  // namespace

std::vector<int32_t> lost_picks(const Picks& picks, std::span<const uint8_t> asked_C, std::span<const uint8_t> keep_C,
                                TokenRange own) {
  std::vector<int32_t> lost;
  for (int32_t i = picks.offsets_T1[own.first]; i < picks.offsets_T1[own.first + own.count]; ++i)
    if (asked_C[i] && !keep_C[i]) lost.push_back(i);
  return lost;
}

Tensor lost_weights(const Decision& decision) {
  Tensor lost = at::zeros({decision.routing.tokens}, decision.choice.weights_C.options());
  by_dtype(lost, [&](auto zero) {
    using T = decltype(zero);
    const auto weights = elements<T>(decision.choice.weights_C), out = elements<T>(lost);
    for_each_lost(decision, [&](int32_t pick, int64_t token) { out[token] += weights[pick]; });
  });
  return lost;
}

void add_lost_gradient(const Decision& decision, const Tensor& dlost_T, Tensor& dweights_C) {
  by_dtype(dweights_C, [&](auto zero) {
    using T = decltype(zero);
    const auto in = elements<T>(dlost_T), out = elements<T>(dweights_C);
    for_each_lost(decision, [&](int32_t pick, int64_t token) { out[pick] += in[token]; });
  });
}

void FallbackStage::forward(nn::Frame& frame) {
  Tensor y = frame.value(slots_.routed).clone();
  kernels::add_scaled_rows(frame.value(slots_.fallback), frame.value(slots_.lost), y);
  frame.value(slots_.output) = y;
}

void FallbackStage::backward_input(nn::Frame& frame) {
  const Tensor& dy = frame.grad(slots_.output);
  frame.add_grad(slots_.lost, kernels::row_products(dy, frame.value(slots_.fallback)));
  frame.add_grad(slots_.fallback, kernels::scaled_rows(dy, frame.value(slots_.lost)));
  frame.add_grad(slots_.routed, dy);
}

}  // namespace conclave::moe
