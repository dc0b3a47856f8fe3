// SPDX-License-Identifier: Apache-2.0
// A router with its state and a batch, in a step of training, outside of any layer.
#pragma once

#include <memory>
#include <vector>

#include "moe/decision.h"
#include "moe/router.h"
#include "support/tiny_models.h"

namespace conclave::testing {

struct Routed {
  moe::RouterConfig config;
  moe::RouteShape shape;
  Batch batch;
  moe::Moment moment{.training = true};
  moe::MethodState state = {};
  std::unique_ptr<moe::Router> router = moe::Router::make(config, shape);

  Routed(const moe::RouterConfig& c, const moe::RouteShape& s, int64_t tokens)
      : config(c), shape(s), batch(random_batch(1, tokens, 23, 1)) {
    router->declare(shape, state);
  }
  // The same with the tokens from place `by` on, and others behind them.
  Routed moved_by(int64_t by) const {
    Routed moved(config, shape, batch.length);
    for (int64_t& id : moved.batch.global_token_ids) id += by;
    return moved;
  }
  moe::Choice route(const Tensor& scores) const { return router->route(scores, {batch, state, moment, at::kDouble}); }
};

// The router's choice of `scores`, nothing dropped, with its statistics.
inline moe::Decision decided(const Routed& setup, const Tensor& scores) {
  moe::Decision d;
  d.choice = setup.route(scores);
  const std::vector<uint8_t> keep(d.choice.picks.count(), 1);
  d.routing = moe::make_routing(d.choice.picks, keep, {0, d.choice.tokens()}, d.choice.experts);
  d.statistics = moe::gather_statistics(d.choice, d.routing, setup.batch, setup.shape.top_k);
  return d;
}

inline std::vector<int64_t> loads(const moe::Choice& choice) {
  std::vector<int64_t> counts(choice.experts, 0);
  for (const int32_t id : choice.picks.ids_C) ++counts[id];
  return counts;
}

}  // namespace conclave::testing
