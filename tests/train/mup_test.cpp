// SPDX-License-Identifier: Apache-2.0
// With `model.init: mup` what activations change in training does not depend on widths or on the number of experts,
// whatever the layout.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

struct Sizes {
  int64_t width = 128, experts = 8, expert_width = 64;
  int64_t base_experts = 4;
  int64_t sequences = 16, words = 32;
};

LayoutCase sized(Sizes sizes, model::Init init) {
  return {.name = "Mup", .change = [sizes, init](train::RunConfig& config) {
            config.model.hidden_size = sizes.width;
            config.model.num_attention_heads = sizes.width / 16;
            config.model.num_key_value_heads.reset();
            config.model.qk_norm = model::QkNorm::kNone;
            config.model.init = init;
            config.model.init_std = init == model::Init::kMup ? 1.0 : 0.05;
            config.model.mup = {.base_width = 64, .base_head_dim = 16, .base_experts = sizes.base_experts};
            config.moe.num_experts = sizes.experts;
            config.moe.expert_hidden_size = sizes.expert_width;
            config.moe.num_shared_experts = 0;
            config.moe.balance = {};
            config.optim.weight_decay = 0;
            config.optim.lr = config.optim.min_lr = 1e-3;
            config.train.steps = 5;
            config.train.micro_batch_size = config.train.global_batch_size = sizes.sequences;
            config.model.vocab_size = std::max<int64_t>(sizes.words, 32);
            config.model.max_seq_len = config.data.seq_len = 32;
          }};
}

// Of one batch: what parts of the last block gave, and logits of its router and of targets.
std::map<std::string, Tensor> activations(model::Transformer& model, const Batch& batch) {
  nn::Frame frame = model.frame(batch, nullptr);
  for (size_t s = 0; s + 1 < model.stages().size(); ++s) model.stages()[s]->forward(frame);
  std::map<std::string, Tensor> seen;
  for (nn::Slot slot = 0; slot < model.slots().count(); ++slot) {
    const std::string& name = model.slots()[slot];
    if (name == "layers.1.attention" || name == "layers.1.moe.output" || name == "layers.1.ffn_residual")
      seen[name] = frame.value(slot).clone();
  }
  seen["router"] = model.decision(frame, 1).choice.logits_TE.clone();
  for (int64_t t = 0; t < batch.tokens_count(); t += 7)
    seen[fmt::format("logits.{}", t)] = model.logits(frame, t)[batch.targets[t]];
  return seen;
}

// Text that can be learned: after its first token a sequence has so many words, each follows from the one before.
Batch learnable(const train::RunConfig& config, int64_t words) {
  Batch batch = layout_batch(config, false, 0, 0);
  for (int64_t i = 0; i < batch.tokens_count(); ++i) {
    if (i % batch.length != 0) batch.tokens[i] = batch.targets[i - 1];
    batch.targets[i] = static_cast<int32_t>((5 * batch.tokens[i] + 1) % words);
  }
  return batch;
}

// Mean |Δ| after 5 steps.
std::map<std::string, double> changes(Sizes sizes, model::Init init) {
  RankRun run({}, {}, sized(sizes, init), parallel::Reduction::kFast);
  const Batch batch = learnable(run.config(), sizes.words);
  const auto before = activations(run.model(), batch);
  for (int64_t i = 0; i < 5; ++i) run.training().run(i, std::span(&batch, 1));
  const auto after = activations(run.model(), batch);
  std::map<std::string, double> mean;
  std::map<std::string, int> count;
  for (const auto& [name, value] : before) {
    const std::string key = name.starts_with("logits") ? "logits" : name;
    mean[key] += (after.at(name) - value).abs().mean().item<double>();
    ++count[key];
  }
  for (auto& [key, value] : mean) value /= count[key];
  return mean;
}

// Slope of log y over log x, least squares.
double slope(const std::vector<double>& x, const std::vector<double>& y) {
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  const auto n = static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = std::log(x[i]), b = std::log(y[i]);
    sx += a, sy += b, sxx += a * a, sxy += a * b;
  }
  return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

using Choose = std::function<Sizes(int64_t)>;

std::map<std::string, double> slopes(const std::vector<int64_t>& sizes, const Choose& choose, model::Init init) {
  std::vector<double> x;
  std::map<std::string, std::vector<double>> y;
  for (const int64_t size : sizes) {
    x.push_back(static_cast<double>(size));
    for (const auto& [name, change] : changes(choose(size), init)) y[name].push_back(change);
  }
  std::map<std::string, double> all;
  for (const auto& [name, of_sizes] : y) {
    all[name] = slope(x, of_sizes);
    std::string text;
    for (const double change : of_sizes) text += fmt::format(" {:.4f}", change);
    fmt::print("  {:<24} {}: slope {:+.3f}\n", name, text, all[name]);
  }
  return all;
}

void expect_flat(const std::map<std::string, double>& all, double router = 0.1) {
  ASSERT_EQ(all.size(), 5u);
  for (const auto& [name, value] : all) EXPECT_NEAR(value, 0, name == "router" ? router : 0.1) << name;
}

const std::vector<int64_t> kWidths = {64, 128, 256, 512, 1024};

TEST(MupCoordinates, AreFlatOverWidths) {
  expect_flat(slopes(
      kWidths, [](int64_t n) { return Sizes{.width = n}; }, model::Init::kMup));
}

TEST(MupCoordinates, GrowWithWidthOtherwise) {
  const auto all = slopes(
      kWidths, [](int64_t n) { return Sizes{.width = n}; }, model::Init::kNormal);
  EXPECT_GT(all.at("logits"), 0.3);
  EXPECT_GT(all.at("layers.1.ffn_residual"), 0.3);
}

// Few words, so that an expert that is chosen sees one or two of them however many there are: what changes with the
// number of words that teach an expert is no matter of scales.
Sizes of_experts(int64_t n) { return {.experts = n, .sequences = 64, .words = 4}; }

// A router's logits move 0.20 with 4 experts, 0.31, 0.27, 0.30 and 0.30 with 8 to 64: flat but for the first, which
// alone makes the slope 0.115.
TEST(MupCoordinates, AreFlatOverNumbersOfExperts) {
  expect_flat(slopes({4, 8, 16, 32, 64}, of_experts, model::Init::kMup), 0.13);
  EXPECT_NEAR(slopes({8, 16, 32, 64}, of_experts, model::Init::kMup).at("router"), 0, 0.1);
}

TEST(MupCoordinates, FallWithTheNumberOfExpertsWithoutTheFactorOfTheirWeights) {
  const auto without = [](int64_t n) {
    Sizes sizes = of_experts(n);
    sizes.base_experts = n;
    return sizes;
  };
  EXPECT_LT(slopes({4, 8, 16, 32, 64}, without, model::Init::kMup).at("layers.1.moe.output"), -0.15);
}

TEST(MupCoordinates, AreFlatOverWidthsOfExperts) {
  const auto choose = [](int64_t n) { return Sizes{.expert_width = n, .sequences = 64, .words = 512}; };
  expect_flat(slopes({32, 64, 128, 256, 512}, choose, model::Init::kMup));
}

LayoutCase small() {
  return {.name = "SmallMup", .change = [](train::RunConfig& config) {
            config.model.init = model::Init::kMup;
            config.model.mup = {.base_width = 16, .base_head_dim = 4, .base_experts = 2};
            config.model.tie_embeddings = true;  // gradients from the first step on
            config.optim.weight_decay = 0.1;
          }};
}

TEST(MupRanks, LayoutsKeepTheirPromises) {
  const Alone alone(small());
  for (const Layout layout : {Layout{2, 2}, Layout{4, 2}})
    run_ranks(layout.ranks(), [&](const comm::Group& world) { expect_layout_promise(world, layout, small(), alone); });
  for (const Layout layout : {Layout{.tp = 2}, {.dp = 2, .ep = 2, .zero = 1, .tp = 2, .etp = 2}})
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      expect_close(run_layout(world, layout, small(), parallel::Reduction::kFast), alone.fast);
    });
}

TEST(Mup, GoesOnBitForBitAfterAResume) {
  RankRun whole({}, {}, small(), parallel::Reduction::kCanonical),
      resumed({}, {}, small(), parallel::Reduction::kCanonical);
  for (int64_t step = 0; step < 2; ++step) whole.step(step);
  const auto from = whole.state(), to = resumed.state();
  for (size_t i = 0; i < from.size(); ++i) std::copy(from[i].data.begin(), from[i].data.end(), to[i].data.begin());
  resumed.restore(2);
  whole.step(2), resumed.step(2);
  EXPECT_EQ(whole.all_state(), resumed.all_state());
}

TEST(Mup, ComputesTheSameOnTheDevicePath) {
  auto on_device = small();
  on_device.device = model::DevicePath{};
  expect_close(run_layout({}, {}, on_device, parallel::Reduction::kFast),
               run_layout({}, {}, small(), parallel::Reduction::kFast));
}

}  // namespace
}  // namespace conclave::test
