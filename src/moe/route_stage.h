// SPDX-License-Identifier: Apache-2.0
// The router's stage: logits, choice, drops and statistics in forward; the gradient of weights and auxiliary losses in
// backward. Logits are at least fp32. Input x [T, D]; outputs the pair weights [N] and, as an object, the Decision.
// Under tensor parallelism x are this rank's tokens of the micro-batch. Drops and statistics need all of them, so
// logits are gathered, and every rank makes the same choice for the whole micro-batch and dispatches its own tokens.
#pragma once

#include <memory>

#include "comm/group.h"
#include "moe/balancer.h"
#include "moe/capacity.h"
#include "moe/choices.h"
#include "moe/router.h"
#include "nn/stage.h"

namespace conclave::moe {

// Everything later stages and reports read of one layer's routing in one micro-batch.
struct Decision {
  Choice choice;                // of the whole micro-batch
  Routing routing;              // of this rank's tokens
  int64_t first_token = 0;      // of those in the micro-batch
  RouterStatistics statistics;  // of the whole micro-batch
};

struct RouteSlots {
  nn::Slot input;
  nn::Slot weights;                     // [N]
  nn::Slot decision;                    // object: Decision
  std::vector<nn::Slot> all_decisions;  // of every MoE layer in order (losses over the whole model)
  int layer = 0;                        // this one's place among the MoE layers
};

struct RouteConfig {
  MoeConfig moe;
  nn::ParameterId weight_ED = 0;
  int64_t top_k = 1;                   // after granularity
  ChoiceObserver* observer = nullptr;  // of training choices; outlives the stage
  comm::Group tp = {};                 // ranks that share the micro-batch's tokens; the stage is collective over it
};

class RouteStage : public nn::Stage {
 public:
  // `states` has one entry for each MoE layer and outlives the stage.
  RouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config,
             const std::vector<BalanceState>& states);
  void connect(RouteSlots slots) { slots_ = std::move(slots); }

  std::vector<nn::Slot> inputs() const override { return {slots_.input}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.weights, slots_.decision}; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  std::vector<int32_t> unbiased_ids(Choice& choice, const nn::Frame& frame) const;
  std::vector<uint8_t> admitted(const Choice& choice, const nn::Frame& frame, int64_t& dropped) const;
  bool renormalizes() const { return config_.capacity.renormalize && config_.capacity.factor.has_value(); }
  // Sets routing and statistics from the choice and what is kept of it.
  void settle(Decision& decision, std::span<const int32_t> unbiased, std::span<const uint8_t> keep,
              const nn::Frame& frame) const;
  Tensor pair_weights(const Decision& decision) const;
  Tensor choice_gradient(const Tensor& dweights_N, const Decision& decision) const;

  const nn::Parameters& parameters_;
  nn::ParameterId weight_;
  MoeConfig config_;
  int64_t top_k_;
  ChoiceObserver* observer_;
  comm::Group tp_;
  std::unique_ptr<Router> router_;
  Balancer balancer_;
  const std::vector<BalanceState>& states_;
  RouteSlots slots_;
};

}  // namespace conclave::moe
