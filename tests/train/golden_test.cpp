// SPDX-License-Identifier: Apache-2.0
// Ten optimizer steps from PyTorch's weights through the step that training takes, against transformers with
// torch.optim.AdamW: losses, gradient norms and the weights at the end.
#include "support/golden.h"

#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/safetensors.h"
#include "train/run_state.h"

namespace conclave {
namespace {

double relative(double got, double expected) { return std::abs(got - expected) / std::abs(expected); }

// Every tensor of the file fills one of ours, and the other way round.
void load_weights(model::Transformer& transformer, const std::string& file) {
  const checkpoint::SafetensorsFile weights(testing::golden_path(file));
  const auto state = train::weight_state(transformer, parallel::Mesh());
  ASSERT_EQ(weights.tensors().size(), state.size());
  for (const auto& entry : state) {
    ASSERT_EQ(weights.at(entry.name).shape, entry.global_shape) << entry.name;
    weights.read(entry.name, entry.data);
  }
}

// Sum and norm of each logical tensor, relative to its norm (a sum may be near zero).
double worst_weight_difference(model::Transformer& transformer, const nlohmann::json& expected) {
  double worst = 0;
  const auto state = train::weight_state(transformer, parallel::Mesh());
  EXPECT_EQ(state.size(), expected.size());
  for (const auto& entry : state) {
    const auto* values = reinterpret_cast<const float*>(entry.data.data());
    double sum = 0, squares = 0;
    for (size_t i = 0; i < entry.data.size() / sizeof(float); ++i)
      sum += values[i], squares += double{values[i]} * values[i];
    const double norm = expected.at(entry.name).at("norm");
    const double off_sum = std::abs(sum - expected.at(entry.name).at("sum").get<double>()) / norm;
    const double off_norm = relative(std::sqrt(squares), norm);
    EXPECT_LT(off_sum, 1e-4) << entry.name;
    EXPECT_LT(off_norm, 1e-5) << entry.name;
    worst = std::max({worst, off_sum, off_norm});
  }
  return worst;
}

class GoldenTraining : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenTraining, TenStepsEqualTransformers) {
  const auto golden = testing::golden_json(GetParam() + std::string(".json"));
  const std::vector<config::Override> data{{config::Override::Kind::kSet, "data.train=[{name: golden, path: golden}]"}};
  const auto config = train::load_config(testing::golden_path(golden["config"]), data).config;
  const parallel::Mesh mesh;
  Failpoints none;
  model::Transformer transformer(train::transformer_config(config), mesh);
  ASSERT_NO_FATAL_FAILURE(load_weights(transformer, golden["weights"]));
  train::TrainStep step(config, mesh, transformer, none);

  const int64_t steps = golden["steps"];
  ASSERT_EQ(config.train.steps, steps);
  double worst_loss = 0, worst_norm = 0, worst_aux = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const std::vector<Batch> batches{testing::golden_batch(golden, i)};
    const auto report = step.run(i, batches);
    ASSERT_FALSE(report.skipped) << *report.skipped;
    worst_loss = std::max(worst_loss, relative(report.loss, golden["ce_loss"]["value"][i]));
    worst_norm = std::max(worst_norm, relative(report.grad_norm, golden["grad_norm"]["value"][i]));
    if (golden["aux_coef"] == 0.0) continue;
    const auto& totals = report.layers.at(0);
    worst_aux = std::max(worst_aux, relative(totals.losses.at(0) / totals.targets, golden["aux_loss"]["value"][i]));
  }
  EXPECT_LT(worst_loss, 1e-5);
  EXPECT_LT(worst_norm, 1e-4);
  EXPECT_LT(worst_aux, 1e-5);
  const double worst_weight = worst_weight_difference(transformer, golden["final_weights"]);
  RecordProperty("worst_relative_loss", fmt::format("{:.1e}", worst_loss));
  RecordProperty("worst_relative_norm", fmt::format("{:.1e}", worst_norm));
  RecordProperty("worst_relative_aux", fmt::format("{:.1e}", worst_aux));
  RecordProperty("worst_relative_weight", fmt::format("{:.1e}", worst_weight));
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTraining,
                         ::testing::Values("mixtral", "mixtral-aux", "olmoe", "olmoe-aux", "qwen2_moe",
                                           "qwen2_moe-aux"));

}  // namespace
}  // namespace conclave
