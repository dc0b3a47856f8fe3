// SPDX-License-Identifier: Apache-2.0
// A whole MoE layer and a whole training step with the kernels of a device, against the same on the CPU; and that the
// host waits for neither, but for the one look of a step.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "cuda/device_runs.h"
#include "kernels/placement.h"
#include "support/device_layer.h"
#include "support/tiny_models.h"
#include "train/layout_runs.h"

namespace conclave::kernels {
namespace {

struct DeviceStagesTest : DeviceTest {};
struct DeviceStepTest : DeviceTest {};

struct LayerCase {
  std::string name;
  int64_t experts = 8, top_k = 2, sequences = 2, length = 9, padding = 3;
  moe::Score score = moe::Score::kSoftmax;
  int64_t shared = 0;
};

std::vector<LayerCase> layer_cases() {
  return {{.name = "plain"},
          {.name = "sigmoid, shared expert", .score = moe::Score::kSigmoid, .shared = 1},
          {.name = "one token", .sequences = 1, .length = 1, .padding = 0},
          {.name = "nothing but padding", .sequences = 1, .length = 3, .padding = 3},
          {.name = "experts without rows", .experts = 64, .sequences = 1, .length = 3, .padding = 0},
          {.name = "all experts", .experts = 4, .top_k = 4},
          {.name = "one expert", .experts = 1, .top_k = 1},
          {.name = "512 experts", .experts = 512, .top_k = 8}};
}

// The MoE layer of a model that has one, without what is around it.
class Layer {
 public:
  Layer(const LayerCase& c, const model::DevicePath& path) : model_(config_of(c, path)), batch_(batch_of(c)) {
    for (size_t s = 0; s < model_.stages().size(); ++s)
      if (model_.stages()[s]->name().rfind("layers.0.moe.", 0) == 0) stages_.push_back(s);
    input_ = model_.stages()[stages_.at(0)]->inputs()[0];
  }

  // y, dx, and the gradients of all weights. Rows come and go in the type of the computation.
  std::vector<Tensor> run(const Tensor& x_TD, const Tensor& dy_TD) {
    nn::Gradients gradients{at::zeros_like(std::as_const(model_).parameters().flat(false)),
                            {at::zeros_like(std::as_const(model_).parameters().flat(true))}};
    nn::Frame frame = model_.frame(batch_, &gradients);
    frame.value(input_) = x_TD;
    for (const size_t s : stages_) model_.stages()[s]->forward(frame);
    std::vector<Tensor> results;
    for (const size_t s : stages_) {
      for (const nn::Slot slot : model_.stages()[s]->outputs()) {
        const std::string& name = model_.slots()[slot];
        if (name != "layers.0.moe.output" && name != "layers.0.moe.shared") continue;
        results.push_back(frame.value(slot));
        frame.grad(slot) = dy_TD;
      }
    }
    for (auto s = stages_.rbegin(); s != stages_.rend(); ++s) {
      model_.stages()[*s]->backward_input(frame);
      model_.stages()[*s]->backward_weight(frame);
    }
    results.insert(results.end(), {frame.grad(input_), gradients.dense, gradients.experts[0]});
    return results;
  }
  int64_t reads() const { return model_.reads().count(); }
  static int64_t width() { return 16; }

 private:
  static model::TransformerConfig config_of(const LayerCase& c, const model::DevicePath& path) {
    auto config = testing::tiny_config();
    config.model.num_layers = 1;
    config.moe.num_experts = c.experts;
    config.moe.top_k = c.top_k;
    config.moe.expert_hidden_size = 24;
    config.moe.num_shared_experts = c.shared;
    config.moe.router.score = c.score;
    config.moe.balance.losses = {{.type = moe::LossType::kSwitch, .coef = 0.3},
                                 {.type = moe::LossType::kZ, .coef = 0.1}};
    config.device = path;
    return config;
  }
  static Batch batch_of(const LayerCase& c) {
    Batch batch = testing::random_batch(c.sequences, c.length, 23, 1);
    for (int64_t t = batch.tokens_count() - c.padding; t < batch.tokens_count(); ++t)
      batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;
    return batch;
  }

  model::Transformer model_;
  Batch batch_;
  std::vector<size_t> stages_;
  nn::Slot input_ = 0;
};

void compare_layers(const LayerCase& c, at::ScalarType dtype, double tolerance) {
  SCOPED_TRACE(c.name);
  at::set_num_threads(1);
  const int64_t T = c.sequences * c.length;
  const Tensor x = random_tensor({T, Layer::width()}, dtype, 2), dy = random_tensor({T, Layer::width()}, dtype, 3);
  const auto results = run_on_device([&] {
    Layer layer(c, {.device = test_device(), .compute = dtype});
    const Tensor x_ = to_device(x), dy_ = to_device(dy);
    layer.run(x_, dy_);  // what is made on first use
    const int64_t before = layer.reads();
    const bool hidden = x_.is_cpu() || has_grouped_product(x_);  // else each grouped product reads, and says so
    const std::unique_ptr<NoWaits> none = hidden ? std::make_unique<NoWaits>() : nullptr;
    auto all = layer.run(x_, dy_);
    EXPECT_EQ(layer.reads() - before, hidden ? 0 : 6) << "looks of the host";
    return all;
  });
  Layer reference(c, {.device = at::kCPU, .compute = dtype});
  const auto expected = reference.run(x, dy);
  ASSERT_EQ(results.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i)
    testing::expect_near(results[i], expected[i], tolerance, "result " + std::to_string(i));
}

TEST_F(DeviceStagesTest, AnMoeLayerInFloatComputesWhatTheCpuComputes) {
  for (const LayerCase& c : layer_cases()) compare_layers(c, at::kFloat, 1e-5);
}

// Both round to bf16 after every kernel, not always the same way.
TEST_F(DeviceStagesTest, AnMoeLayerInBf16ComputesWhatTheCpuComputes) {
  for (const LayerCase& c : layer_cases()) compare_layers(c, at::kBFloat16, 0.02);
}

// As with experts on several ranks: rows go through the exchange, also those that stay.
TEST_F(DeviceStagesTest, AnMoeLayerWithAnExchangeLooksOnceInForwardAndNeverInBackward) {
  at::set_num_threads(1);
  const testing::LayerSize size{.experts = 8, .top_k = 2, .width = 16, .expert_width = 24};
  const Batch batch = testing::random_batch(2, 9, 23, 1);
  const Tensor x = random_tensor({18, 16}, at::kBFloat16, 2), dy = random_tensor({18, 16}, at::kBFloat16, 3);
  const auto results = run_on_device([&] {
    const Tensor x_ = to_device(x), dy_ = to_device(dy);
    moe::MoeConfig config;
    config.balance.losses = {{.coef = 0.3}};
    const testing::DevicePlace alone{.device = test_device()}, exchanging{device_group(), test_device(), true};
    testing::DeviceLayer layer(config, size, at::kFloat, at::kBFloat16, exchanging),
        whole(config, size, at::kFloat, at::kBFloat16, alone);
    layer.run(batch, x_, dy_);  // what is made on first use
    const bool hidden = x_.is_cpu() || has_grouped_product(x_);
    const std::unique_ptr<NoWaits> none = hidden ? std::make_unique<NoWaits>() : nullptr;
    const auto got = layer.run(batch, x_, dy_, /*again=*/true);
    EXPECT_EQ(got.forward_reads, 1);
    EXPECT_EQ(got.backward_reads, 0);
    const auto expected = whole.run(batch, x_, dy_);
    return std::vector<Tensor>{got.y,      got.dx,      got.dgate_up_E2FD,      got.ddown_EDF,
                               expected.y, expected.dx, expected.dgate_up_E2FD, expected.ddown_EDF};
  });
  for (size_t i = 0; i < 4; ++i) testing::expect_near(results[i], results[i + 4], 0.02, "result " + std::to_string(i));
}

test::LayoutCase step_case(const model::DevicePath& path) {
  return {.name = "Step",
          .change = [](auto& config) { config.train.global_batch_size = 4; },
          .padding = true,
          .device = path};
}

// Two steps: losses, norms, weights.
std::vector<Tensor> two_steps(const model::DevicePath& path, bool watch) {
  test::RankRun run({}, {}, step_case(path), parallel::Reduction::kFast);
  Tensor figures = at::empty({4}, at::kDouble);
  for (int64_t i = 0; i < 2; ++i) {
    const int64_t before = run.model().reads().count();
    // The first step makes what is made on first use.
    const std::unique_ptr<NoWaits> none = watch && i > 0 ? std::make_unique<NoWaits>() : nullptr;
    const auto report = run.step(i);
    EXPECT_FALSE(report.skipped) << *report.skipped;
    if (watch) {
      EXPECT_EQ(run.model().reads().count() - before, 1) << "looks of the host in a step";
    }
    figures[2 * i] = report.loss;
    figures[2 * i + 1] = report.grad_norm;
  }
  return {figures, run.parameters().flat(false), run.parameters().flat(true)};
}

TEST_F(DeviceStepTest, AStepTrainsAsOnTheCpu) {
  for (const auto dtype : kDeviceTypes) {
    SCOPED_TRACE(dtype);
    const model::DevicePath path{.device = test_device(), .compute = dtype};
    const auto results = run_on_device([&] {
      const Tensor some = to_device(random_tensor({8, 8}, dtype, 1));
      return two_steps(path, some.is_cpu() || has_grouped_product(some));
    });
    const auto expected = two_steps({.device = at::kCPU, .compute = dtype}, true);
    const double tolerance = dtype == at::kFloat ? 1e-4 : 0.02;
    for (int64_t i = 0; i < 4; ++i)
      EXPECT_NEAR(results[0][i].item<double>() / expected[0][i].item<double>(), 1.0, tolerance) << "figure " << i;
    // A step of AdamW moves a weight by about the learning rate, 1e-2, whatever its gradient.
    for (const size_t flat : {1, 2})
      EXPECT_LE((results[flat] - expected[flat]).abs().mean().item<double>(), dtype == at::kFloat ? 1e-5 : 2e-3);
  }
}

}  // namespace
}  // namespace conclave::kernels
