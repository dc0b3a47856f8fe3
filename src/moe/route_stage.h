// SPDX-License-Identifier: Apache-2.0
// The router's stage: scores, choice, drops and statistics in forward; the gradient of weights and auxiliary losses in
// backward. Scores are at least fp32. Input x [T, D]; outputs the pair weights [N] and, as an object, the Decision.
// Under tensor parallelism x are this rank's tokens of the micro-batch. Drops and statistics need all of them, so
// scores are gathered, and every rank makes the same choice for the whole micro-batch and dispatches its own tokens.
#pragma once

#include <memory>

#include "comm/group.h"
#include "moe/balancer.h"
#include "moe/capacity.h"
#include "moe/choices.h"
#include "moe/context_scan.h"
#include "moe/router.h"
#include "moe/scorer.h"
#include "nn/stage.h"

namespace conclave::moe {

struct RouteSlots {
  nn::Slot input;
  nn::Slot weights;                   // [N]
  nn::Slot decision;                  // object: Decision
  std::optional<nn::Slot> home = {};  // [T, V], where the router has home terms
  std::optional<nn::Slot> lost = {};  // [T], weights that capacity refused, where a fallback takes them
  // Empty; its gradient is [T, E], where the router wants stand-ins.
  std::optional<nn::Slot> stand_ins = {};
  std::vector<nn::Slot> all_decisions;  // of every MoE layer in order (losses over the whole model)
  int layer = 0;                        // this one's place among the MoE layers
};

struct RouteConfig {
  MoeConfig moe;
  std::vector<nn::ParameterId> blocks = {};  // one for each of the router's
  RouteShape shape = {};
  ChoiceObserver* observer = nullptr;  // of training choices; outlives the stage
  comm::Group tp = {};                 // ranks that share the micro-batch's tokens; the stage is collective over it
  std::optional<nn::ParameterId> context = {};  // rates of the context, a parameter [D]
  bool adds = false;                            // another layer may have written the blocks' gradients before this one
};

class RouteStage : public nn::Stage {
 public:
  // `state` outlives the stage.
  RouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config, const ModelState& state);
  void connect(RouteSlots slots) { slots_ = std::move(slots); }
  const Router& router() const { return *forms_.back().router; }

  std::vector<nn::Slot> inputs() const override { return {slots_.input}; }
  std::vector<nn::Slot> outputs() const override;
  std::vector<nn::ParameterId> parameters() const override;
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  Moment moment(const nn::Frame& frame) const;
  // Of the context: what was forward, and its gradient.
  struct Saved {
    Tensor dscores_TS, context_TD, dcontext_TD;
  };
  ScorerInput scorer_input(nn::Frame& frame) const;
  void make_context(nn::Frame& frame) const;
  // d x of the rank's own tokens from the scores' gradient of all.
  Tensor input_gradient(nn::Frame& frame, const Tensor& dscores_TS) const;
  RouteInput route_input(nn::Frame& frame) const;
  TokenRange own_tokens(int64_t all) const;
  // Replaces the picks where the observer says so.
  void observe(Choice& choice, const RouteInput& in) const;
  std::vector<uint8_t> admitted(Decision& decision, const RouteInput& in) const;
  bool renormalizes(bool training) const {
    const auto& capacity = config_.capacity;
    return capacity.renormalize && (capacity.factor || (!training && capacity.eval_factor));
  }
  // Sets routing and statistics from the choice and what is kept of it.
  void settle(Decision& decision, std::span<const uint8_t> keep, const RouteInput& in) const;
  Tensor pair_weights(const Decision& decision, bool training) const;
  Tensor weights_gradient(const Tensor& dweights_N, const Decision& decision) const;
  void set_home(nn::Frame& frame, const Decision& decision) const;
  // Of the parts of the choice that stages after this one read.
  ChoiceGradients choice_gradients(nn::Frame& frame, const Decision& decision) const;

  // The router as it is until a step: with as many experts for each token as top_k has then.
  struct Form {
    int64_t until;
    RouteShape shape;
    std::unique_ptr<Router> router;
  };
  static std::vector<Form> forms_of(const RouteConfig& config);
  const Form& form(int64_t step) const;

  MoeConfig config_;
  RouteShape shape_;
  ChoiceObserver* observer_;
  comm::Group tp_;
  bool adds_;
  Scorer scorer_;
  std::optional<ContextScan> context_;
  std::vector<Form> forms_;  // by step
  std::unique_ptr<Admission> training_, evaluation_;
  Balancer balancer_;
  std::vector<double> relative_widths_;  // see LossView
  const ModelState& state_;
  RouteSlots slots_;
};

}  // namespace conclave::moe
