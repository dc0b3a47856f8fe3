// SPDX-License-Identifier: Apache-2.0
// Figures of a step are the sums over all its micro-batches, of all ranks.
#include "model/routing_totals.h"

#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "model/executors/sequential.h"
#include "support/tiny_models.h"

namespace conclave::model {
namespace {

RoutingTotals totals_of(const Transformer& m, std::initializer_list<int64_t> micro_batches) {
  RoutingTotals totals(m);
  for (const int64_t i : micro_batches) {
    const Batch batch = testing::random_batch(2, 9, 23, 3, i);
    nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
    nn::Frame frame = m.frame(batch, &gradients);
    for (const auto& stage : m.stages()) stage->forward(frame);
    totals.add(m, frame);
  }
  totals.reduce(comm::Group());
  return totals;
}

TEST(RoutingTotals, AddUpOverAllMicroBatches) {
  auto config = testing::tiny_config();
  config.moe.router.type = "expert_choice";
  config.moe.balance.losses = {{moe::LossType::kZ, 1e-3}};
  const Transformer m(config);
  const auto together = totals_of(m, {0, 1, 2});
  const RoutingTotals alone[] = {totals_of(m, {0}), totals_of(m, {1}), totals_of(m, {2})};
  ASSERT_FALSE(together.layers().empty());
  for (size_t l = 0; l < together.layers().size(); ++l) {
    const auto& sum = together.layers()[l];
    const auto added = [&](auto value) {
      double all = 0;
      for (const auto& one : alone) all += value(one.layers()[l]);
      return all;
    };
    EXPECT_EQ(sum.tokens, added([](const auto& t) { return static_cast<double>(t.tokens); }));
    EXPECT_NEAR(sum.entropy, added([](const auto& t) { return t.entropy; }), 1e-9);
    EXPECT_NEAR(sum.targets, added([](const auto& t) { return t.targets; }), 1e-9);
    EXPECT_NEAR(sum.losses[0], added([](const auto& t) { return t.losses[0]; }), 1e-9);
    ASSERT_EQ(sum.sums.size(), 5u);  // a threshold for each of four experts, and how many micro-batches
    EXPECT_EQ(sum.sums[4], 3.0);
    for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(sum.sums[i], added([i](const auto& t) { return t.sums[i]; }), 1e-9);
    for (size_t e = 0; e < 4; ++e)
      EXPECT_EQ(sum.selected_E[e], added([e](const auto& t) { return static_cast<double>(t.selected_E[e]); }));
  }
}

}  // namespace
}  // namespace conclave::model
