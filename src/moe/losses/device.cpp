// SPDX-License-Identifier: Apache-2.0
// Device-level balance (DeepSeek-V2, arXiv 2405.04434): L = coef · Σ_D f'_D P'_D, f'_D the mean over the experts of a
// device of f_e = E · c_e / all choices, P'_D the sum of their mean affinities. A device is one of `devices` equal
// groups of neighbouring experts, whatever the ranks.
#include "moe/losses/share_loss.h"

namespace conclave::moe {
namespace {

class DeviceLoss : public ShareLoss {
 public:
  explicit DeviceLoss(const BalanceLoss& config) : ShareLoss(config.coef), devices_(config.devices.value_or(1)) {}

 private:
  std::vector<double> shares(const LossView& view, int layer) const override {
    const RouterStatistics& s = view.layers[layer]->statistics;
    const int64_t size = s.experts / devices_;
    std::vector<int64_t> counts(devices_, 0);
    for (size_t i = 0; i < s.chosen_BE.size(); ++i)
      counts[static_cast<int64_t>(i) % s.experts / size] += s.chosen_BE[i];
    const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    std::vector<double> a(s.experts, 0.0);
    // The mean of E · c / all over E / D experts.
    for (int64_t e = 0; e < s.experts && all > 0; ++e)
      a[e] = static_cast<double>(devices_ * counts[e / size]) / static_cast<double>(all);
    return a;
  }

  int64_t devices_;
};

}  // namespace

AuxiliaryLoss::Row device_loss() {
  return {.type = LossType::kDevice,
          .label = "dev",
          .what = "groups of experts get equal numbers of tokens",
          .source = "DeepSeek-V2, arXiv 2405.04434",
          .equation = "coef * sum_D mean_{e in D}(f_e) sum_{e in D}(P_e)",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<DeviceLoss>(config);
          },
          .keys = {"coef", "devices"}};
}

}  // namespace conclave::moe
