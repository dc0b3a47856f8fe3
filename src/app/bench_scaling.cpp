// SPDX-License-Identifier: Apache-2.0
#include "app/bench_scaling.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "app/bench_numbers.h"
#include "app/bench_step.h"
#include "app/rank_resources.h"
#include "core/error.h"
#include "train/step.h"

namespace conclave::app {
namespace {

double best(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

// A model in training.
class Trainee {
 public:
  // Collective over `ranks`, which train together.
  Trainee(const comm::Group& ranks, const train::RunConfig& config)
      : config_(config),
        mesh_(ranks, config_.parallel),
        model_(train::transformer_config(config_), mesh_),
        step_(config_, mesh_, model_, none_),
        batches_(made_up_batches(config_, mesh_)) {}
  // One step, timed over `world`, where all ranks start together. Weights under way cost the next step their time.
  double step(const comm::Group& world) {
    return seconds_of(world, [&] {
      const auto report = step_.run(std::ssize(losses_), batches_);
      if (report.skipped) throw NumericError("an update was skipped: {}", *report.skipped);
      losses_.push_back(report.loss);
    });
  }
  // Before another model takes turns.
  void rest() { step_.wait_for_weights(); }
  const std::vector<double>& losses() const { return losses_; }

 private:
  train::RunConfig config_;
  parallel::Mesh mesh_;
  model::Transformer model_;
  Failpoints none_;
  train::TrainStep step_;
  std::vector<Batch> batches_;
  std::vector<double> losses_;
};

train::RunConfig alone(train::RunConfig config, int ranks) {
  config.train.global_batch_size /= ranks;
  config.parallel.dp = config.parallel.ep = 1;
  config.parallel.executor = parallel::ExecutorType::kSequential;
  config.moe.dispatch.type = moe::DispatchType::kAuto;
  return config;
}

train::RunConfig together(train::RunConfig config, parallel::ExecutorType executor, bool overlap) {
  config.parallel.executor = executor;
  config.parallel.overlap_grad_reduce = config.parallel.overlap_param_gather = overlap;
  return config;
}

// The second of two steps, so that each pays for the weights that the one before it has left under way.
void time_step(const comm::Group& world, Trainee& trainee, ScalingRow& row) {
  trainee.step(world);
  row.seconds.push_back(trainee.step(world));
  trainee.rest();
}

}  // namespace

double ScalingBench::communication() const { return median(naive.seconds) / median(isolated.seconds) - 1; }
double ScalingBench::efficiency() const { return median(isolated.seconds) / median(overlapped.seconds); }

ScalingBench bench_scaling(comm::World& world, const train::RunConfig& config, const ScalingOptions& options) {
  if (config.parallel.tp > 1)
    throw ConfigError("parallel.tp: ranks that share a micro-batch cannot train on their own; set tp to 1");
  ScalingBench bench;
  bench.threads = rank_threads(world.cores());
  at::set_num_threads(bench.threads);
  const auto group = world.group(config.comm.backend);
  if (world.size() > 1) world.advance_by(config.comm.progress);
  bench.tokens = config.train.global_batch_size / world.size() * config.data.seq_len;
  const auto executor = config.parallel.executor;
  Trainee isolated(comm::Group(), alone(config, world.size()));
  Trainee naive(group, together(config, parallel::ExecutorType::kSequential, false));
  Trainee waiting(group, together(config, executor, false)), overlapped(group, together(config, executor, true));
  for (int64_t i = 0; i < options.warmup; ++i)
    for (Trainee* trainee : {&isolated, &naive, &waiting, &overlapped}) {
      trainee->step(group);
      trainee->rest();
    }
  for (int64_t i = 0; i < options.repetitions; ++i) {
    time_step(group, isolated, bench.isolated);
    time_step(group, naive, bench.naive);
    time_step(group, waiting, bench.waiting);
    time_step(group, overlapped, bench.overlapped);
  }
  bench.isolated.name = "isolated";
  bench.naive.name = "naive";
  bench.waiting.name = "waiting";
  bench.overlapped.name = "overlapped";
  // The first losses: afterwards the weights of different executors differ as AdamW makes them.
  const std::vector<double> first{naive.losses().front()};
  const double order = largest_difference({waiting.losses().front()}, first);
  bench.loss_difference = largest_difference(overlapped.losses(), waiting.losses());
  if (!(order <= bench.loss_difference)) bench.loss_difference = order;
  if (!(bench.loss_difference < 1e-5))
    throw NumericError("steps that must agree differ in a loss by {:.1e}: run `conclave verify` on this model",
                       bench.loss_difference);
  return bench;
}

std::string scaling_report(const ScalingBench& bench) {
  std::string text = fmt::format(
      "{} tokens a rank and step, {} thread{} a rank, {} steps each in turns\n  {:<12} {:>10} {:>10} {:>14} {:>14}\n",
      bench.tokens, bench.threads, bench.threads == 1 ? "" : "s", bench.isolated.seconds.size(), "step", "median s",
      "best s", "tok/s a rank", "of isolated");
  const double isolated = median(bench.isolated.seconds);
  for (const ScalingRow* row : {&bench.isolated, &bench.naive, &bench.waiting, &bench.overlapped}) {
    const double seconds = median(row->seconds);
    text += fmt::format("  {:<12} {:>10.4f} {:>10.4f} {:>14.0f} {:>14.3f}\n", row->name, seconds, best(row->seconds),
                        static_cast<double>(bench.tokens) / seconds, isolated / seconds);
  }
  return text + fmt::format(
                    "communication/compute in naive order {:.2f} (best steps {:.2f}); tokens/s of a rank, overlapped / "
                    "isolated {:.3f} ({:.3f}); losses differ by {:.1e}\n",
                    bench.communication(), best(bench.naive.seconds) / best(bench.isolated.seconds) - 1,
                    bench.efficiency(), best(bench.isolated.seconds) / best(bench.overlapped.seconds),
                    bench.loss_difference);
}

nlohmann::json to_json(const ScalingBench& bench) {
  nlohmann::json json{{"tokens", bench.tokens},
                      {"threads", bench.threads},
                      {"loss_difference", bench.loss_difference},
                      {"communication_to_compute", bench.communication()},
                      {"efficiency", bench.efficiency()}};
  for (const ScalingRow* row : {&bench.isolated, &bench.naive, &bench.waiting, &bench.overlapped})
    json["seconds"][row->name] = row->seconds;
  return json;
}

}  // namespace conclave::app
