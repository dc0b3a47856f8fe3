// SPDX-License-Identifier: Apache-2.0
// Expert ids of one model, seen and taken over by another.
#include "moe/choices.h"

#include <gtest/gtest.h>

#include "support/tiny_models.h"
#include "verify/models.h"
#include "verify/rank_run.h"

namespace conclave::test {
namespace {

// A model with other weights that sees the same batches.
verify::RankSetup other_model(moe::ChoiceObserver& choices, const train::RunConfig& base) {
  auto config = base;
  config.model.init_std = 0.6;
  train::resolve(config, 1);
  return {.config = config, .choices = &choices};
}

train::StepReport one_step(const verify::RankSetup& setup) {
  verify::RankRun run(comm::Group(), setup);
  return run.step(0);
}

class ChoicesReplay : public ::testing::TestWithParam<train::RunConfig (*)()> {};

TEST_P(ChoicesReplay, ReplayTakesOverEveryDecisionOfAnotherModel) {
  auto config = GetParam()();
  train::resolve(config, 1);
  moe::ChoiceRecord record;
  const auto first = one_step({.config = config, .choices = &record});
  moe::ChoiceReplay look(record, false), take(record, true);
  const auto free = one_step(other_model(look, config)), led = one_step(other_model(take, config));
  EXPECT_GT(look.flips(), 0);
  EXPECT_GT(take.flips(), 0);
  ASSERT_EQ(led.layers.size(), 2u);
  for (size_t l = 0; l < led.layers.size(); ++l) {
    EXPECT_EQ(led.layers[l].chosen_E, first.layers[l].chosen_E);
    EXPECT_EQ(led.layers[l].selected_E, first.layers[l].selected_E);
    EXPECT_NE(free.layers[l].selected_E, first.layers[l].selected_E);
  }
  EXPECT_NE(led.loss, free.loss) << "weights of the replayed experts are used";
  EXPECT_GT(record.bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, ChoicesReplay, ::testing::Values(&softmax_aux_model, &sigmoid_bias_model));

TEST(ChoicesTest, ReplayOfItsOwnDecisionsChangesNoBit) {
  auto config = sigmoid_bias_model();
  train::resolve(config, 1);
  moe::ChoiceRecord record;
  const auto first = one_step({.config = config, .choices = &record});
  moe::ChoiceReplay take(record, true);
  const auto again = one_step({.config = config, .choices = &take});
  EXPECT_EQ(take.flips(), 0);
  EXPECT_EQ(again.loss, first.loss);
  EXPECT_EQ(again.grad_norm, first.grad_norm);
}

TEST(ChoicesTest, PaddingCountsAsNoFlipAndUnknownBatchesAreABug) {
  Batch batch = testing::random_batch(1, 2, 8, 1);
  batch.segment_ids[1] = -1;
  moe::ChoiceRecord record;
  const auto picks = [](std::vector<int32_t> ids) { return moe::even_picks(std::move(ids), 2); };
  moe::ExpertIds ids{picks({0, 1, 2, 3}), picks({0, 1, 2, 3})};
  record.chosen(batch, 0, ids);
  moe::ChoiceReplay look(record, false);
  moe::ExpertIds other{picks({0, 1, 3, 2}), picks({0, 1, 2, 3})};
  look.chosen(batch, 0, other);
  EXPECT_EQ(look.flips(), 0);
  EXPECT_EQ(other.selected, picks({0, 1, 3, 2}));
  other.selected = picks({1, 0, 3, 2});
  look.chosen(batch, 0, other);
  EXPECT_EQ(look.flips(), 1);
  batch.index = 7;
  EXPECT_THROW(look.chosen(batch, 0, other), BugError);
}

}  // namespace
}  // namespace conclave::test
