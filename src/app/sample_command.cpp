// SPDX-License-Identifier: Apache-2.0
#include "app/sample_command.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "app/opened_run.h"
#include "app/rank_resources.h"
#include "comm/world.h"
#include "core/random.h"
#include "model/executors/sequential.h"

namespace conclave::app {
namespace {

struct SampleOptions {
  std::string run, prompt;
  int64_t tokens = 100;
  double temperature = 0.8;
  int64_t top_k = 50;
  uint64_t seed = 1;
};

// The whole context as one sequence; no target counts.
Batch context_batch(std::span<const int32_t> tokens) {
  Batch batch;
  batch.sequences = 1;
  batch.length = static_cast<int64_t>(tokens.size());
  batch.tokens.assign(tokens.begin(), tokens.end());
  batch.targets.assign(tokens.size(), 0);
  batch.loss_mask.assign(tokens.size(), 0.0f);
  batch.segment_ids.assign(tokens.size(), 0);
  batch.position_ids.resize(tokens.size());
  std::iota(batch.position_ids.begin(), batch.position_ids.end(), 0);
  batch.global_token_ids.assign(batch.position_ids.begin(), batch.position_ids.end());
  return batch;
}

// Draws from softmax(logits / temperature) over the top_k most likely; temperature 0 takes the best.
int32_t draw(std::span<const float> logits, const SampleOptions& options, double uniform) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t kept = options.top_k > 0 ? std::min<size_t>(options.top_k, order.size()) : order.size();
  std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                    [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  if (options.temperature <= 0) return order[0];
  std::vector<double> weights;
  for (size_t i = 0; i < kept; ++i)
    weights.push_back(std::exp((logits[order[i]] - logits[order[0]]) / options.temperature));
  double left = uniform * std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t i = 0; i < kept; ++i) {
    left -= weights[i];
    if (left <= 0) return order[i];
  }
  return order[kept - 1];
}

int sample(const SampleOptions& options) {
  at::set_num_threads(rank_threads(process_cores()));
  const auto log = make_silent_log();  // the text is the output
  auto opened = open_run(options.run, comm::Group(), *log);
  const auto tokenizer = open_tokenizer(opened.config);
  auto tokens = tokenizer.encode(options.prompt);
  if (tokens.empty()) tokens.push_back(tokenizer.end_of_document().value_or(0));
  const model::SequentialExecutor executor(*opened.model);
  const Random random(options.seed, Purpose::kSample);
  fmt::print("{}", options.prompt);
  for (int64_t i = 0; i < options.tokens; ++i) {
    const size_t window = std::min<size_t>(tokens.size(), opened.config.model.max_seq_len);
    const Batch batch = context_batch(std::span<const int32_t>(tokens).last(window));
    nn::Frame frame = opened.model->frame(batch, nullptr, std::max<int64_t>(opened.step - 1, 0));
    executor.run(frame);
    const Tensor logits = opened.model->logits(frame, batch.length - 1);
    const int32_t next = draw(elements<float>(logits), options, random.uniform(i));
    if (next == tokenizer.end_of_document() || next >= tokenizer.vocab_size()) break;
    tokens.push_back(next);
    fmt::print("{}", tokenizer.decode(std::span<const int32_t>(&tokens.back(), 1)));
    std::fflush(stdout);
  }
  fmt::print("\n");
  return 0;
}

}  // namespace

void add_sample_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<SampleOptions>();
  auto* command = app.add_subcommand("sample", "continue a prompt with a run's model");
  command->add_option("RUN", options->run, "directory of the run")->required();
  command->add_option("--prompt", options->prompt, "text to continue")->required();
  command->add_option("--tokens", options->tokens, "tokens to write at most")->check(CLI::PositiveNumber);
  command->add_option("--temperature", options->temperature, "0 = always the most likely token")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-k", options->top_k, "choose among this many; 0 = all")->check(CLI::NonNegativeNumber);
  command->add_option("--seed", options->seed, "the same seed writes the same text");
  command->footer("Example:\n  conclave sample runs/quickstart --prompt \"The function returns\" --tokens 60");
  command->callback([options, &run] {
    run = [options] {
      return comm::run_world([&](comm::World& world) {
        if (world.size() > 1) throw UsageError("conclave sample runs alone\n  Start it without mpirun.");
        return sample(*options);
      });
    };
  });
}

}  // namespace conclave::app
