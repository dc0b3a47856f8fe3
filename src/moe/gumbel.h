// SPDX-License-Identifier: Apache-2.0
// The Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030): the expert with the largest z_e + g_e,
// where g_e = −ln(−ln u_e) and u_e is uniform, is a draw from softmax(z). u_e is drawn for each step, layer, global
// token and expert, so layouts and recomputation draw the same.
#pragma once

#include <span>
#include <vector>

#include "moe/router.h"

namespace conclave::moe {

// One expert for each token, drawn from the softmax of its logits; `without`, empty or one for each token, are experts
// that are left out. Ties to the lower id. Training only.
std::vector<int32_t> gumbel_draws(const Tensor& logits_TE, const RouteInput& in, Purpose purpose,
                                  std::span<const int32_t> without = {});

}  // namespace conclave::moe
