// SPDX-License-Identifier: Apache-2.0
// Gradients of routers and losses against finite differences in fp64.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "support/moe_methods.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::Routed;
using kernels::random_tensor;

class RouterGradient : public ::testing::TestWithParam<conclave::testing::Method> {};

TEST_P(RouterGradient, EqualsFiniteDifferencesOfWeightsAndLosses) {
  const auto method = GetParam();
  const auto config = method.config();
  const int64_t T = 12;
  Routed setup(config.router, {.experts = method.experts, .top_k = method.top_k, .vocab = 23}, T);
  setup.batch.segment_ids[T - 1] = -1, setup.batch.loss_mask[T - 1] = 0;
  int64_t columns = 0;
  for (const auto& block : setup.router->blocks(setup.shape)) columns += block.columns;
  if (columns == 0) GTEST_SKIP() << "nothing to differentiate";
  const Balancer balancer(config.balance);
  const auto widths = relative_widths(config);
  ModelState state{{setup.state}, {}};
  const std::vector<int64_t> experts{method.experts};
  balancer.declare(experts, state);
  const double targets = std::accumulate(setup.batch.loss_mask.begin(), setup.batch.loss_mask.end(), 0.0);
  const auto decide = [&](const Tensor& scores) {
    Decision d;
    d.choice = setup.router->route(scores, {setup.batch, state.layers[0], setup.moment, at::kDouble});
    std::vector<uint8_t> keep(d.choice.picks.count(), 1);
    for (size_t i = 0; i < d.choice.declined_C.size(); ++i) keep[i] = !d.choice.declined_C[i];
    d.routing = make_routing(d.choice.picks, keep, {0, T}, method.experts);
    d.statistics = gather_statistics(d.choice, d.routing, setup.batch, method.top_k);
    return d;
  };
  const Tensor scores = random_tensor({T, columns}, at::kDouble, 5);
  const Decision at_start = decide(scores);
  const Tensor a = random_tensor({at_start.choice.picks.count()}, at::kDouble, 6);
  const bool home = setup.router->home_terms() > 0;
  const Tensor b = home ? random_tensor(at_start.choice.home_TV.sizes().vec(), at::kDouble, 7) : Tensor();
  const auto objective = [&](const Tensor& at) {
    const Decision d = decide(at);
    EXPECT_EQ(d.choice.picks, at_start.choice.picks) << "the step is too large";
    const Decision* layer = &d;
    const LossView view{{&layer, 1}, state, setup.batch, widths};
    // A mid-point estimator's backward is that of the probability without its multiplier.
    const bool estimates = config.router.type == "sparsemixer";
    double sum = ((estimates ? d.choice.raw_C : d.choice.weights_C) * a).sum().item<double>();
    if (home) sum += (d.choice.home_TV * b).sum().item<double>();
    const auto own = balancer.coefficients(state);
    for (size_t i = 0; i < balancer.losses().size(); ++i)
      sum += own[i].value_or(balancer.losses()[i].coef) * targets * balancer.value(view, static_cast<int>(i), 0);
    return sum;
  };
  const Decision* layer = &at_start;
  ChoiceGradients gradients{.weights_C = a.clone(), .home_TV = b};
  balancer.add_gradient({{&layer, 1}, state, setup.batch, widths}, 0, gradients);
  const Tensor actual = setup.router->backward(at_start.choice, gradients);
  const double h = 1e-6;
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t c = 0; c < columns; ++c) {
      Tensor up = scores.clone(), down = scores.clone();
      up[t][c] += h, down[t][c] -= h;
      const double expected = (objective(up) - objective(down)) / (2 * h);
      EXPECT_NEAR(actual[t][c].item<double>(), expected, 2e-7 * std::max(1.0, std::abs(expected))) << t << " " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RouterGradient, ::testing::ValuesIn(conclave::testing::router_methods()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::moe
