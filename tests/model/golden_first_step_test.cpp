// SPDX-License-Identifier: Apache-2.0
// One forward and backward from PyTorch's weights, against transformers: loss, auxiliary loss and the gradient of every
// tensor.
#include <ATen/ops/norm.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "model/executors/sequential.h"
#include "support/golden.h"

namespace conclave {
namespace {

class GoldenFirstStep : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenFirstStep, GivesTransformersLossesAndGradients) {
  const auto golden = testing::golden_json(GetParam() + std::string(".json"));
  model::Transformer m(testing::golden_config(golden));
  testing::load_golden_weights(m, golden["weights"]);
  const Batch batch = testing::golden_batch(golden, 0);
  nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
  nn::Frame frame = m.frame(batch, &gradients);
  model::SequentialExecutor(m).run(frame);

  const double targets = static_cast<double>(batch.sequences * (batch.length - 1));
  const double ce = golden["ce_loss"]["value"][0];
  EXPECT_NEAR(frame.loss_sum / targets / ce, 1.0, 1e-6);
  if (golden["aux_coef"] != 0.0) {
    nn::Gradients scratch{at::zeros_like(gradients.dense), {at::zeros_like(gradients.experts[0])}};
    nn::Frame again = m.frame(batch, &scratch);
    for (const auto& stage : m.stages()) stage->forward(again);
    std::vector<const moe::Decision*> storage;
    const double aux = m.balancer().value(m.loss_view(again, storage), 0, 0);
    EXPECT_NEAR(aux / golden["aux_loss"]["value"][0].get<double>(), 1.0, 1e-6);
  }

  double squares = 0;
  for (const auto& parameter : m.parameters().all()) {
    int64_t offset = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = nn::element_count(part.shape);
      const Tensor& flat = parameter.expert ? gradients.experts[0] : gradients.dense;
      const double norm = flat.narrow(0, offset, count).to(at::kDouble).norm().item<double>() / targets;
      const double expected = golden["first_grad_norms"][part.name];
      EXPECT_NEAR(norm, expected, 1e-5 * expected + 1e-9) << part.name;
      squares += norm * norm;
      offset += count;
    }
  }
  EXPECT_NEAR(std::sqrt(squares) / golden["grad_norm"]["value"][0].get<double>(), 1.0, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenFirstStep,
                         ::testing::Values("mixtral", "mixtral-aux", "olmoe", "olmoe-aux", "qwen2_moe",
                                           "qwen2_moe-aux"));

}  // namespace
}  // namespace conclave
