// SPDX-License-Identifier: Apache-2.0
// The gradient of logits in a mixture of all experts with softmax scores that are not divided by a sum: what routers
// share that let something stand in for experts which a token did not choose (methods.md 1.20).
#pragma once

#include "moe/routing.h"

namespace conclave::moe {

// ∂L/∂z_j = r p_j (a_j − Σ_i p_i a_i): r `scale`, a_i the gradient of a pick's weight, of other experts `others_TE`
// (undefined: zero). Reads probs and picks of the choice.
Tensor dense_gradient(const Choice& choice, const Tensor& dweights_C, const Tensor& others_TE, double scale);

}  // namespace conclave::moe
