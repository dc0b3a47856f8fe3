// SPDX-License-Identifier: Apache-2.0
// Communication balance (DeepSeek-V2, arXiv 2405.04434): L = coef · Σ_D f''_D P''_D, f''_D = D/(M·T) · tokens with at
// least one expert on device D, P''_D the sum of the mean affinities of its experts. M is how many devices a token is
// meant to use; devices are groups of experts, as in the device loss.
#include "moe/losses/share_loss.h"

namespace conclave::moe {
namespace {

class CommunicationLoss : public ShareLoss {
 public:
  explicit CommunicationLoss(const BalanceLoss& config)
      : ShareLoss(config.coef), devices_(config.devices.value_or(1)), most_(config.max_devices.value_or(1)) {}

 private:
  std::vector<double> shares(const LossView& view, int layer) const override {
    const Decision& decision = *view.layers[layer];
    const Batch& batch = view.batch;
    const RouterStatistics& s = decision.statistics;
    const int64_t size = s.experts / devices_;
    std::vector<int64_t> arrived(devices_, 0), last(devices_, -1);  // tokens, and which was the last one
    for (int64_t t = 0; t < batch.tokens_count(); ++t) {
      if (batch.segment_ids[t] < 0) continue;
      for (const int32_t id : decision.choice.counted().of(t))
        if (std::exchange(last[id / size], t) != t) ++arrived[id / size];
    }
    std::vector<double> a(s.experts);
    for (int64_t e = 0; e < s.experts; ++e)
      a[e] = static_cast<double>(devices_ * arrived[e / size]) / static_cast<double>(most_ * s.tokens());
    return a;
  }

  int64_t devices_, most_;
};

}  // namespace

AuxiliaryLoss::Row communication_loss() {
  return {.type = LossType::kCommunication,
          .label = "com",
          .what = "groups of experts are sent equal numbers of tokens",
          .source = "DeepSeek-V2, arXiv 2405.04434",
          .equation = "coef * sum_D D/(M T) tokens_D sum_{e in D}(P_e)",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<CommunicationLoss>(config);
          },
          .keys = {"coef", "devices", "max_devices"}};
}

}  // namespace conclave::moe
