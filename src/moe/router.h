// SPDX-License-Identifier: Apache-2.0
// A router turns the scores of a whole micro-batch into a choice of experts with weights, and gradients of the choice
// into one of the scores. It knows no ranks and no transport, and drops nothing. One file per router in routers/, one
// row in the table in router.cpp.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/batch.h"
#include "moe/method.h"
#include "moe/method_state.h"
#include "moe/moe_config.h"
#include "moe/moment.h"
#include "moe/routing.h"
#include "moe/step_totals.h"

namespace conclave::moe {

// Some columns of the scores, linear in a token's input: a parameter [columns, D] of this name.
struct ScoreBlock {
  std::string name;
  int64_t columns = 0;
  std::optional<double> init_std;  // null = model.init_std
};

struct RouteShape {
  int64_t experts = 0, top_k = 1;  // after granularity
  int64_t vocab = 0;
  uint64_t seed = 1;
  int layer = 0;  // among the MoE layers
  int64_t hidden = 0;
};

struct RouteInput {
  const Batch& batch;
  const MethodState& state;  // of this layer
  Moment moment;
  at::ScalarType dtype = at::kFloat;  // of weights
};

class Router {
 public:
  virtual ~Router() = default;
  // `scores_TS` [T, sum of the blocks' columns], at least fp32; undefined for a router without blocks.
  virtual Choice route(const Tensor& scores_TS, const RouteInput& in) const = 0;
  // Raw scores and weights of `choice` again, after its picks were replaced.
  virtual void weigh(Choice& choice, const RouteInput& in) const = 0;
  // d scores; selection has no gradient (methods.md 0.2). Undefined for a router without blocks.
  virtual Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const = 0;

  // Whether backward reads scores_TS or logits_TE of the choice; probs_TE it may read in any case.
  virtual bool backward_reads_logits() const { return true; }

  // What the layer computes for it from the tokens.
  virtual std::vector<ScoreBlock> blocks(const RouteShape& shape) const { return {{"router", shape.experts, {}}}; }
  virtual void declare(const RouteShape&, MethodState&) const {}
  // Experts besides, which stay at home (null ones, copies): their columns follow those of the others.
  virtual int64_t home_experts() const { return 0; }
  // Columns of home_TV: 0 = there is none, 1 = x alone, else x and vectors that are parameters.
  virtual int64_t home_terms() const { return 0; }
  // The state [home_terms - 1, D] whose rows are those vectors instead; empty = they are parameters.
  virtual std::string_view kept_vectors() const { return {}; }
  // Whether end_step reads the outputs of experts.
  virtual bool reads_outputs() const { return false; }
  // Whether backward reads ChoiceGradients::stand_ins_TE.
  virtual bool wants_stand_ins() const { return false; }
  // Experts of a token that compute, as far as one can plan.
  virtual double planned_picks(const RouteShape& shape) const { return static_cast<double>(shape.top_k); }
  // Among how many experts balanced choices spread evenly, each that computes counting as one.
  virtual double even_experts(const RouteShape& shape) const { return static_cast<double>(shape.experts); }
  // Once after each update, with the figures of the whole global batch.
  virtual void end_step(const StepTotals&, MethodState&) const {}

  struct Row {
    MethodInfo info;
    std::unique_ptr<Router> (*make)(const RouterConfig& config, const RouteShape& shape);
    bool many_picks = false;  // a token may be sent to all experts
  };
  static std::span<const Row> table();
  static const Row* find(std::string_view type);
  // Throws ConfigError for an unknown type.
  static std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape);
};

}  // namespace conclave::moe
