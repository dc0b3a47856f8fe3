// SPDX-License-Identifier: Apache-2.0
#include "moe/balance_loss.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

namespace conclave::moe {
namespace {

constexpr int64_t kGrain = 64;  // tokens

// One token: through the softmax, or through the normalised sigmoid.
template <typename T>
void add_token(Affinity affinity, std::span<const double> gradient_E, std::span<const T> probs, std::span<T> dz) {
  double total = 1.0, inner = 0;
  const bool normalised = affinity == Affinity::kNormalised;
  if (normalised) total = std::accumulate(probs.begin(), probs.end(), 0.0);
  // Scores that all underflowed have no affinity.
  const double unit = total > 0 ? 1 / total : 0.0;
  for (size_t e = 0; e < probs.size(); ++e) inner += gradient_E[e] * probs[e] * unit;
  for (size_t e = 0; e < probs.size(); ++e) {
    const double p = probs[e], slope = normalised ? p * (1 - p) * unit : p;
    dz[e] += static_cast<T>(slope * (gradient_E[e] - inner));
  }
}

}  // namespace

// One for each file in losses/.
AuxiliaryLoss::Row communication_loss();
AuxiliaryLoss::Row device_loss();
AuxiliaryLoss::Row entropy_loss();
AuxiliaryLoss::Row importance_loss();
AuxiliaryLoss::Row l1_loss();
AuxiliaryLoss::Row load_loss();
AuxiliaryLoss::Row penalty_loss();
AuxiliaryLoss::Row switch_loss();
AuxiliaryLoss::Row variance_loss();
AuxiliaryLoss::Row z_loss();

std::span<const AuxiliaryLoss::Row> AuxiliaryLoss::table() {
  static const std::array rows{switch_loss(),  z_loss(),      importance_loss(),    load_loss(),
                               l1_loss(),      device_loss(), communication_loss(), variance_loss(),
                               entropy_loss(), penalty_loss()};
  return rows;
}

const AuxiliaryLoss::Row& AuxiliaryLoss::row(LossType type) {
  const auto rows = table();
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.type == type; });
  check(found != rows.end(), "every type of loss has a row");
  return *found;
}

std::vector<double> relative_widths(const MoeConfig& config) {
  const auto* widths = config.expert_hidden_size ? config.expert_hidden_size->each() : nullptr;
  if (widths == nullptr || std::adjacent_find(widths->begin(), widths->end(), std::not_equal_to<>()) == widths->end())
    return {};
  const int64_t sum = std::accumulate(widths->begin(), widths->end(), int64_t{0});
  const double mean = static_cast<double>(sum) / static_cast<double>(widths->size());
  std::vector<double> relative;
  for (const int64_t width : *widths) relative.push_back(static_cast<double>(width) / mean);
  return relative;
}

Tensor& logits_gradient(const Choice& choice, ChoiceGradients& gradients) {
  if (!gradients.logits_TE.defined())
    gradients.logits_TE = at::zeros_like(choice.probs_TE.defined() ? choice.probs_TE : choice.logits_TE);
  return gradients.logits_TE;
}

void add_affinity_gradient(const Choice& choice, const Batch& batch, std::span<const std::vector<double>> gradients_BE,
                           Tensor& dlogits_TE) {
  check(choice.affinity != Affinity::kNone, "a router without affinities is refused losses on them");
  const int64_t E = choice.experts;
  by_dtype(dlogits_TE, [&](auto zero) {
    using T = decltype(zero);
    const auto probs = elements<T>(choice.probs_TE), dz = elements<T>(dlogits_TE);
    at::parallel_for(0, batch.tokens_count(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (batch.segment_ids[t] < 0) continue;
        add_token<T>(choice.affinity, gradients_BE[t / batch.length], probs.subspan(t * E, E), dz.subspan(t * E, E));
      }
    });
  });
}

}  // namespace conclave::moe
