// SPDX-License-Identifier: Apache-2.0
// The same training steps in any (dp, tp, ep, etp): what came out, gathered from all ranks under logical names, to
// compare with one rank. Serves threads as ranks and processes under mpirun. Micro-batches are functions of (step,
// global number).
#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>

#include "config/fields.h"
#include "support/tiny_models.h"
#include "train/run_state.h"

namespace conclave::test {

struct Layout {
  int64_t dp = 1, ep = 1, zero = 0, tp = 1, etp = 1;
  bool sequence_parallel = true, overlap = true;
  moe::DispatchType dispatch = moe::DispatchType::kAuto;
  parallel::ExecutorType executor = parallel::ExecutorType::kSequential;
  int64_t in_flight = 2;

  int ranks() const { return static_cast<int>(dp * tp); }
};

// Those that keep the bits, and those that add up per rank or host (contract: promises).
inline std::vector<moe::DispatchType> bitwise_dispatchers() {
  return {moe::DispatchType::kAllToAll, moe::DispatchType::kShared};
}
inline std::vector<moe::DispatchType> close_dispatchers() {
  return {moe::DispatchType::kAllGather, moe::DispatchType::kHierarchical};
}

struct LayoutCase {
  std::string name;
  std::function<void(train::RunConfig&)> change = [](auto&) {};
  std::function<void(model::Transformer&)> prepare = [](auto&) {};
  // What makes the case worth its name, checked after every step.
  std::function<void(int64_t step, const train::StepReport&)> expect = [](int64_t, const auto&) {};
  bool padding = false;
  std::optional<model::DevicePath> device = {};  // none: the host path
};

inline train::RunConfig layout_config(const LayoutCase& layout_case) {
  train::RunConfig config;
  config.model.vocab_size = 32;
  config.model.hidden_size = 32;
  config.model.num_layers = 2;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 2;
  config.model.max_seq_len = 12;
  config.model.qk_norm = model::QkNorm::kHead;
  config.model.init_std = 0.2;
  config.moe.expert_hidden_size = 24;
  config.moe.num_shared_experts = 1;
  config.moe.balance.losses = {
      {moe::LossType::kSwitch, 0.01, moe::Level::kMicro, moe::Convention::kMegatron, moe::Scope::kLayer},
      {moe::LossType::kSwitch, 0.02, moe::Level::kSequence, moe::Convention::kDeepseek, moe::Scope::kLayer},
      {moe::LossType::kSwitch, 0.03, moe::Level::kGlobal, moe::Convention::kMegatron, moe::Scope::kLayer},
      {moe::LossType::kZ, 1e-3}};
  config.moe.balance.bias.update_rate = 0.01;
  config.data.train = {{.name = "made up", .path = "made-up"}};
  config.data.seq_len = 12;
  config.optim.lr = 1e-2;
  config.optim.min_lr = 1e-3;
  config.optim.warmup = {0, {}};
  config.train.steps = 3;
  config.train.micro_batch_size = 2;
  config.train.global_batch_size = 16;
  layout_case.change(config);
  return config;
}

inline Batch layout_batch(const train::RunConfig& config, bool padding, int64_t step, int64_t number) {
  const int64_t micro_batches = config.train.global_batch_size / config.train.micro_batch_size,
                length = config.data.seq_len;
  Batch batch = testing::random_batch(config.train.micro_batch_size, length, config.model.vocab_size, 5,
                                      step * micro_batches + number);
  batch.index = number;
  // Ends of different length; every fourth micro-batch has a sequence of nothing else.
  const int64_t padded = !padding ? 0 : number % 4 == 3 ? length : number % 4;
  for (int64_t i = batch.tokens_count() - padded; i < batch.tokens_count(); ++i) {
    batch.segment_ids[i] = -1;
    batch.loss_mask[i] = 0;
  }
  return batch;
}

struct LayoutOutcome {
  std::vector<double> losses, norms;
  std::vector<std::vector<int64_t>> chosen;     // of each step and layer
  std::map<std::string, std::string> state;     // bytes by "name role"
  std::map<std::string, std::string> gradient;  // of the last step, the same way
};

// Elements of a logical tensor in its row-major order, from byte `begin` on.
struct Fragment {
  std::string key;  // "name role"
  int64_t begin = 0;
  std::string bytes;
};

// Where each piece of a state lies in its tensor: consecutive elements, or of columns one piece for each row.
inline std::vector<Fragment> fragments_of(const parallel::StateDict& entries) {
  std::vector<Fragment> fragments;
  for (const auto& entry : entries) {
    const auto item = static_cast<int64_t>(comm::bytes_of(entry.dtype));
    const bool columns = entry.shape.size() == 2 && entry.shape[1] < entry.global_shape[1];
    const int64_t pieces = columns ? entry.shape[0] : 1, width = entry.global_shape.back();
    int64_t begin = 0;
    for (size_t d = 0; d < entry.shape.size(); ++d) begin = begin * entry.global_shape[d] + entry.offset[d];
    const size_t bytes = entry.data.size() / pieces;
    for (int64_t i = 0; i < pieces; ++i) {
      fragments.push_back({entry.name + " " + entry.role,
                           (begin + i * width) * item,
                           {reinterpret_cast<const char*>(entry.data.data()) + i * bytes, bytes}});
    }
  }
  return fragments;
}

// Tensors of all ranks by key, put together. Ranks that hold the same elements must hold the same bytes; what nobody
// holds is missing at the end or shows as '?'.
inline std::map<std::string, std::string> assemble(const comm::Group& world, const std::vector<Fragment>& fragments) {
  std::string mine;
  for (const auto& f : fragments) mine += fmt::format("{}\n{}\n{}\n", f.key, f.begin, f.bytes.size()) + f.bytes;
  std::map<std::string, std::string> all, held;
  for (const auto& text : world.all_gather_text(mine)) {
    for (size_t at = 0; at < text.size();) {
      const auto word = [&] {
        const size_t end = text.find('\n', at);
        return text.substr(std::exchange(at, end + 1), end - at);
      };
      const std::string key = word();
      const size_t begin = std::stoull(word()), size = std::stoull(word());
      std::string &tensor = all[key], &mask = held[key];
      tensor.resize(std::max(tensor.size(), begin + size), '?');
      mask.resize(tensor.size(), '\0');
      const bool fresh = mask.find('\1', begin) >= begin + size;
      EXPECT_TRUE(fresh || tensor.compare(begin, size, text, at, size) == 0) << "copies differ: " << key;
      tensor.replace(begin, size, text, at, size);
      mask.replace(begin, size, size, '\1');
      at += size;
    }
  }
  return all;
}

// One rank's training in a layout, on one thread.
class RankRun {
 public:
  RankRun(const comm::Group& world, Layout layout, const LayoutCase& layout_case, parallel::Reduction reduction,
          const std::string& failpoints = "")
      : config_(config_of(layout, layout_case, reduction)),
        padding_(layout_case.padding),
        mesh_(world, config_.parallel),
        model_(model_config(config_, layout_case), mesh_),
        failpoints_(failpoints, world.rank()),
        step_(config_, mesh_, model_, failpoints_) {
    layout_case.prepare(model_);
    if (config_.train.distill) step_.learn_from(&teacher_.emplace(config_, mesh_, *make_silent_log()));
  }
  train::StepReport step(int64_t number, bool without_targets = false) {
    const auto share = mesh_.micro_batches(config_.train.global_batch_size / config_.train.micro_batch_size);
    std::vector<Batch> batches;
    for (int64_t m = 0; m < share.count; ++m) {
      batches.push_back(layout_batch(config_, padding_, number, share.first + m));
      if (without_targets) std::fill(batches.back().loss_mask.begin(), batches.back().loss_mask.end(), 0.0f);
    }
    return step_.run(number, batches);
  }
  // What a checkpoint has; restore() follows a load into it.
  parallel::StateDict state() { return train::full_state(model_, step_, mesh_); }
  void restore(int64_t updates) { step_.set_updates(updates); }
  // By logical name, from all ranks.
  std::map<std::string, std::string> all_state() { return assemble(mesh_.world(), fragments_of(state())); }
  std::map<std::string, std::string> all_gradients() {
    return assemble(mesh_.world(), fragments_of(train::gradient_state(step_, model_, mesh_)));
  }
  const train::RunConfig& config() const { return config_; }
  nn::Parameters& parameters() { return model_.parameters(); }
  const model::Transformer& model() const { return model_; }
  model::Transformer& model() { return model_; }
  train::TrainStep& training() { return step_; }

 private:
  static train::RunConfig config_of(Layout layout, const LayoutCase& layout_case, parallel::Reduction reduction) {
    at::set_num_threads(1);
    train::RunConfig config = layout_config(layout_case);
    config.parallel.tp = layout.tp;
    config.parallel.ep = layout.ep;
    config.parallel.etp = layout.etp;
    config.parallel.sequence_parallel = layout.sequence_parallel;
    config.parallel.zero = layout.zero;
    config.moe.dispatch.type = layout.dispatch;
    config.parallel.reduction = reduction;
    config.parallel.executor = layout.executor;
    config.parallel.micro_batches_in_flight = layout.in_flight;
    config.parallel.overlap_grad_reduce = config.parallel.overlap_param_gather = layout.overlap;
    if (layout.executor == parallel::ExecutorType::kChunked) config.parallel.chunks = 3;  // does not divide the tokens
    train::resolve(config, layout.ranks());
    return config;
  }
  static model::TransformerConfig model_config(const train::RunConfig& config, const LayoutCase& layout_case) {
    auto of_model = train::transformer_config(config);
    if (layout_case.device) of_model.device = layout_case.device;
    of_model.seed = 11;
    return of_model;
  }

  train::RunConfig config_;
  bool padding_;
  parallel::Mesh mesh_;
  model::Transformer model_;
  Failpoints failpoints_;
  std::optional<train::Teacher> teacher_;  // of train.distill
  train::TrainStep step_;
};

// Trains on the ranks of `world`: all steps with canonical, one with fast, at most `most_steps`. Collective.
inline LayoutOutcome run_layout(const comm::Group& world, Layout layout, const LayoutCase& layout_case,
                                parallel::Reduction reduction, int threads = 1, int64_t most_steps = 100) {
  RankRun run(world, layout, layout_case, reduction);
  at::set_num_threads(threads);
  const int64_t all_steps = reduction == parallel::Reduction::kCanonical ? run.config().train.steps : 1;
  const int64_t steps = std::min(all_steps, most_steps);
  LayoutOutcome outcome;
  for (int64_t i = 0; i < steps; ++i) {
    const auto report = run.step(i);
    EXPECT_FALSE(report.skipped) << *report.skipped;
    layout_case.expect(i, report);
    outcome.losses.push_back(report.loss);
    outcome.norms.push_back(report.grad_norm);
    for (const auto& layer : report.layers) outcome.chosen.push_back(layer.chosen_E);
  }
  outcome.state = run.all_state();
  outcome.gradient = run.all_gradients();
  return outcome;
}

// Bit for bit.
inline void expect_same(const LayoutOutcome& got, const LayoutOutcome& expected) {
  for (size_t i = 0; i < expected.losses.size(); ++i) {
    EXPECT_EQ(fmt::format("{:a} {:a}", got.losses[i], got.norms[i]),
              fmt::format("{:a} {:a}", expected.losses[i], expected.norms[i]))
        << "loss and gradient norm of step " << i;
  }
  EXPECT_EQ(got.chosen, expected.chosen);
  for (const auto which : {&LayoutOutcome::gradient, &LayoutOutcome::state}) {
    ASSERT_EQ((got.*which).size(), (expected.*which).size());
    for (const auto& [name, bytes] : expected.*which) EXPECT_TRUE((got.*which).at(name) == bytes) << name;
  }
}

inline std::vector<double> numbers(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return {values.begin(), values.end()};
}

inline double norm_of(const std::vector<double>& values) {
  double squares = 0;
  for (const double v : values) squares += v * v;
  return std::sqrt(squares);
}

// Within 1e-5, the promise of `fast` for one step from equal state; a tensor's norm is 1e-6 of the whole at least.
inline void expect_close(const LayoutOutcome& got, const LayoutOutcome& expected) {
  EXPECT_NEAR(got.losses[0] / expected.losses[0], 1.0, 1e-5);
  EXPECT_NEAR(got.norms[0] / expected.norms[0], 1.0, 1e-5);
  EXPECT_EQ(got.chosen, expected.chosen);
  double squares = 0;
  for (const auto& [name, bytes] : expected.gradient) squares += std::pow(norm_of(numbers(bytes)), 2);
  const double floor = 1e-6 * std::sqrt(squares);
  ASSERT_EQ(got.gradient.size(), expected.gradient.size());
  for (const auto& [name, bytes] : expected.gradient) {
    auto difference = numbers(got.gradient.at(name));
    const auto reference = numbers(bytes);
    for (size_t i = 0; i < reference.size(); ++i) difference[i] -= reference[i];
    EXPECT_LE(norm_of(difference), 1e-5 * std::max(norm_of(reference), floor)) << name;
  }
}

// What one rank on its own makes of a case, to compare with.
struct Alone {
  explicit Alone(const LayoutCase& layout_case)
      : canonical(run_layout(comm::Group(), {}, layout_case, parallel::Reduction::kCanonical)),
        canonical_step(run_layout(comm::Group(), {}, layout_case, parallel::Reduction::kCanonical, 1, 1)),
        fast(run_layout(comm::Group(), {}, layout_case, parallel::Reduction::kFast)) {}
  LayoutOutcome canonical, canonical_step, fast;
};

// Executors against the sequential one: the same bits with micro-batches in flight, close with chunks.
inline void expect_executor_promises(const comm::Group& world, Layout layout, const LayoutCase& layout_case,
                                     const Alone& alone) {
  for (const bool interleaved : {true, false}) {
    layout.executor = interleaved ? parallel::ExecutorType::kInterleaved : parallel::ExecutorType::kChunked;
    SCOPED_TRACE(fmt::format("{}: dp {} ep {} {}, rank {}", layout_case.name, layout.dp, layout.ep,
                             interleaved ? "interleaved" : "chunked", world.rank()));
    expect_close(run_layout(world, layout, layout_case, parallel::Reduction::kFast), alone.fast);
    for (layout.in_flight = 2; interleaved && layout.in_flight <= 3; ++layout.in_flight)
      expect_same(run_layout(world, layout, layout_case, parallel::Reduction::kCanonical), alone.canonical);
  }
}

// Both promises on the ranks of `world`, with and without sharded optimizer state, for every dispatcher.
inline void expect_layout_promise(const comm::Group& world, Layout layout, const LayoutCase& layout_case,
                                  const Alone& alone) {
  for (const int64_t zero : {0, 1}) {
    layout.zero = zero;
    const auto compare = [&](moe::DispatchType dispatch, bool bitwise) {
      layout.dispatch = dispatch;
      SCOPED_TRACE(fmt::format("{}: dp {} ep {} zero {} {}, rank {}", layout_case.name, layout.dp, layout.ep, zero,
                               config::enum_name(dispatch), world.rank()));
      if (bitwise) {
        expect_same(run_layout(world, layout, layout_case, parallel::Reduction::kCanonical), alone.canonical);
      } else {
        // One step: afterwards the weights differ as AdamW makes them.
        const auto one_step = run_layout(world, layout, layout_case, parallel::Reduction::kCanonical, 1, 1);
        expect_close(one_step, alone.canonical_step);
      }
      expect_close(run_layout(world, layout, layout_case, parallel::Reduction::kFast), alone.fast);
    };
    const auto hosts = world.hosts();
    const bool one_host = hosts == std::vector<int>(hosts.size(), 0);
    for (const auto dispatch : bitwise_dispatchers())
      if (dispatch != moe::DispatchType::kShared || one_host) compare(dispatch, true);
    // What they do does not depend on who owns optimizer state.
    if (zero == 1) continue;
    for (const auto dispatch : close_dispatchers()) compare(dispatch, false);
  }
}

inline void set_bias(model::Transformer& transformer, int64_t expert, float value) {
  for (auto& layer : transformer.state().layers) layer.values<float>("bias")[expert] = value;
}

inline void zero_router(model::Transformer& transformer) {
  for (const auto& parameter : transformer.parameters().all()) {
    if (parameter.kind == nn::ParameterKind::kRouter)
      nn::view_of(transformer.parameters().flat(false), parameter).zero_();
  }
}

inline std::vector<LayoutCase> layout_cases() {
  std::vector<LayoutCase> cases{{.name = "Plain"}, {.name = "Padding", .padding = true}};
  cases.push_back({.name = "ExpertsWithoutTokens",
                   .prepare = [](auto& model) { set_bias(model, 5, -1e3f), set_bias(model, 6, -1e3f); },
                   .expect =
                       [](int64_t, const auto& report) {
                         for (const auto& layer : report.layers)
                           EXPECT_EQ(layer.dispatched_E[5] + layer.dispatched_E[6], 0);
                       }});
  // Equal logits go to the lower id: everything to expert 0, until the router learns.
  cases.push_back({.name = "CollapseOntoOneExpert",
                   .change = [](auto& config) { config.moe.top_k = 1, config.moe.balance.bias.update_rate = 0; },
                   .prepare = zero_router,
                   .expect =
                       [](int64_t step, const auto& report) {
                         for (const auto& layer : report.layers)
                           EXPECT_TRUE(step > 0 || layer.dispatched_E[0] == layer.tokens);
                       }});
  cases.push_back({.name = "CollapseThatLasts",
                   .change = [](auto& config) { config.moe.top_k = 1; },
                   .prepare = [](auto& model) { set_bias(model, 3, 1e3f); },
                   .expect =
                       [](int64_t, const auto& report) {
                         for (const auto& layer : report.layers) EXPECT_EQ(layer.dispatched_E[3], layer.tokens);
                       }});
  for (const auto policy : {moe::DropPolicy::kPosition, moe::DropPolicy::kScore}) {
    cases.push_back({.name = policy == moe::DropPolicy::kPosition ? "CapacityByPosition" : "CapacityByScore",
                     .change =
                         [policy](auto& config) {
                           auto& capacity = config.moe.capacity;
                           capacity.factor = 0.7, capacity.policy = policy;
                           capacity.renormalize = true, capacity.min = 1;
                         },
                     .expect = [](int64_t, const auto& report) { EXPECT_GT(report.layers[0].dropped, 0); }});
  }
  cases.push_back({.name = "SigmoidWithBias", .change = [](auto& config) {
                     config.moe.router.score = moe::Score::kSigmoid;
                     config.moe.router.norm_topk_prob = true;
                     config.moe.router.routed_scaling_factor = 2.5;
                   }});
  cases.push_back({.name = "OddSizes", .change = [](auto& config) {
                     config.model.hidden_size = 24, config.model.vocab_size = 23, config.moe.expert_hidden_size = 20;
                     config.data.seq_len = 11, config.model.qk_norm = model::QkNorm::kFull;
                   }});
  cases.push_back({.name = "DenseFirstSharedGateTied", .change = [](auto& config) {
                     config.moe.layers = moe::LayerPattern{1, 1}, config.moe.shared_gate = true;
                     config.model.tie_embeddings = true, config.model.qkv_bias = true;
                   }});
  return cases;
}

}  // namespace conclave::test
