// SPDX-License-Identifier: Apache-2.0
#include "app/bench_overlap.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "app/bench_numbers.h"
#include "app/bench_step.h"
#include "app/rank_resources.h"
#include "app/recorded_transport.h"
#include "config/fields.h"
#include "core/error.h"
#include "model/executor.h"
#include "train/step.h"

namespace conclave::app {
namespace {

using comm::ProgressBy;
using parallel::ExecutorType;

// One way to run the micro-batches, with what was measured of it.
class Subject {
 public:
  // Collective.
  Subject(const comm::Group& world, train::RunConfig config, ExecutorType type)
      : type_(type),
        config_(with(std::move(config), type)),
        recording_(std::make_shared<Recording>()),
        world_(recorded(world, recording_)),
        mesh_(world_, config_.parallel),
        model_(train::transformer_config(config_), mesh_),
        executor_(model::Executor::make({type, config_.parallel.micro_batches_in_flight}, model_)),
        gradients_{
            at::zeros_like(model_.parameters().flat(false)), {at::zeros_like(model_.parameters().flat(true))}, false} {
    for (auto& batch : made_up_batches(config_, mesh_)) batches_.push_back(std::move(batch));
  }

  // Once with everything, to remember the exchanges; returns the losses.
  std::vector<double> prepare(bool training) {
    recording_->set_mode(Recording::Mode::kRecord);
    std::vector<double> losses;
    run(training, &losses);
    return losses;
  }
  double both(bool training) {
    return timed(Recording::Mode::kPass, [&] { run(training, nullptr); });
  }
  double compute(bool training) {
    return timed(Recording::Mode::kReplay, [&] { run(training, nullptr); });
  }
  double comm() {
    return timed(Recording::Mode::kPass, [&] { recording_->communicate(); });
  }
  int64_t bytes_sent() const { return recording_->bytes_sent(); }
  ExecutorType type() const { return type_; }
  int64_t micro_batches() const { return std::ssize(batches_); }
  std::string name() const {
    const std::string name(config::enum_name(type_));
    return type_ == ExecutorType::kChunked ? fmt::format("{} {}", name, config_.parallel.chunks) : name;
  }

 private:
  static train::RunConfig with(train::RunConfig config, ExecutorType type) {
    config.parallel.executor = type;
    // What is recorded and played back are all-to-alls.
    config.moe.dispatch.type = moe::DispatchType::kAllToAll;
    return config;
  }
  void run(bool training, std::vector<double>* losses) {
    executor_->run({.count = std::ssize(batches_),
                    .begin = [&](int64_t i) { return model_.frame(batches_[i], training ? &gradients_ : nullptr); },
                    .end =
                        [&](int64_t, nn::Frame& frame) {
                          gradients_.fresh = false;
                          if (losses != nullptr) losses->push_back(frame.loss_sum);
                        }});
  }
  template <typename Body>
  double timed(Recording::Mode mode, const Body& body) {
    recording_->set_mode(mode);
    return seconds_of(world_, body);
  }

  ExecutorType type_;
  train::RunConfig config_;
  std::shared_ptr<Recording> recording_;
  comm::Group world_;
  parallel::Mesh mesh_;
  model::Transformer model_;
  std::unique_ptr<model::Executor> executor_;
  nn::Gradients gradients_;
  std::vector<Batch> batches_;
};

using Subjects = std::vector<std::unique_ptr<Subject>>;

struct Pass {
  const char* name;
  bool training;
};
constexpr Pass kPasses[] = {{"forward", false}, {"forward + backward", true}};

// All executors in turns, `repetitions` times.
std::vector<OverlapRow> measure_pass(Subjects& subjects, const Pass& pass, ProgressBy progress, int64_t repetitions) {
  const size_t count = subjects.size();
  std::vector<std::vector<double>> both(count), compute(count), comm(count);
  for (int64_t i = 0; i < repetitions; ++i) {
    for (size_t s = 0; s < count; ++s) {
      both[s].push_back(subjects[s]->both(pass.training));
      compute[s].push_back(subjects[s]->compute(pass.training));
      comm[s].push_back(subjects[s]->comm());
    }
  }
  std::vector<OverlapRow> rows;
  for (size_t s = 0; s < count; ++s)
    rows.push_back({.pass = pass.name,
                    .executor = subjects[s]->name(),
                    .progress = std::string(config::enum_name(progress)),
                    .both = median(both[s]),
                    .compute = median(compute[s]),
                    .comm = median(comm[s])});
  return rows;
}

}  // namespace

OverlapBench bench_overlap(comm::World& world, const train::RunConfig& config, const OverlapOptions& options) {
  if (config.parallel.ep < 2)
    throw ConfigError("parallel.ep: with one rank there is nothing to hide; start two and --set parallel.ep=2");
  OverlapBench bench;
  bench.threads = rank_threads(world.cores());
  at::set_num_threads(bench.threads);
  const auto group = world.group(config.comm.backend);
  Subjects subjects;
  for (const auto type : {ExecutorType::kSequential, ExecutorType::kChunked, ExecutorType::kInterleaved})
    subjects.push_back(std::make_unique<Subject>(group, config, type));
  bench.micro_batches = subjects[0]->micro_batches();
  bench.tokens = bench.micro_batches * config.train.micro_batch_size * config.data.seq_len;
  for (const Pass& pass : kPasses) {
    std::vector<double> reference;
    for (auto& subject : subjects) {
      auto losses = subject->prepare(pass.training);
      if (reference.empty()) reference = losses;
      bench.loss_difference = larger(bench.loss_difference, largest_difference(losses, reference));
    }
    bench.bytes.push_back(static_cast<double>(subjects[0]->bytes_sent()));
    for (const auto progress : {ProgressBy::kPoll, ProgressBy::kThread}) {
      world.advance_by(progress);
      for (auto& row : measure_pass(subjects, pass, progress, options.repetitions)) bench.rows.push_back(row);
    }
    world.advance_by(ProgressBy::kPoll);
  }
  if (!(bench.loss_difference < 1e-5))
    throw NumericError("executors that must agree differ in a loss by {:.1e}: run `conclave verify` on this model",
                       bench.loss_difference);
  return bench;
}

double hidden_share(const OverlapBench& bench, const OverlapRow& row) {
  const auto reference = std::find_if(bench.rows.begin(), bench.rows.end(), [&](const OverlapRow& other) {
    return other.pass == row.pass && other.progress == row.progress;
  });
  return (reference->comm + reference->compute - row.both) / std::min(reference->comm, reference->compute);
}

std::string overlap_report(const OverlapBench& bench) {
  std::string text = fmt::format(
      "{} micro-batches, {} tokens a rank, {} thread{} a rank; a rank sends {:.1f} MB forward, {:.1f} MB with "
      "backward\n"
      "  {:<19} {:<13} {:<8} {:>10} {:>10} {:>10} {:>8}\n",
      bench.micro_batches, bench.tokens, bench.threads, bench.threads == 1 ? "" : "s", bench.bytes[0] / 1e6,
      bench.bytes[1] / 1e6, "pass", "executor", "progress", "exchange s", "compute s", "both s", "hidden");
  for (const auto& row : bench.rows)
    text += fmt::format("  {:<19} {:<13} {:<8} {:>10.4f} {:>10.4f} {:>10.4f} {:>8.2f}\n", row.pass, row.executor,
                        row.progress, row.comm, row.compute, row.both, hidden_share(bench, row));
  const auto& first = bench.rows.back();
  const double ratio = first.comm / first.compute;
  text += fmt::format(
      "hidden: (exchange + compute - both) / the smaller, both of the sequential row; losses differ by {:.1e}\n",
      bench.loss_difference);
  if (ratio < 0.5 || ratio > 2)
    text += fmt::format("warning: exchanges take {:.2f} of the computation; the figure is meant for about 1\n", ratio);
  return text;
}

nlohmann::json to_json(const OverlapBench& bench) {
  nlohmann::json json{{"micro_batches", bench.micro_batches},
                      {"tokens", bench.tokens},
                      {"threads", bench.threads},
                      {"bytes_sent", bench.bytes},
                      {"loss_difference", bench.loss_difference}};
  for (const auto& row : bench.rows)
    json["rows"].push_back({{"pass", row.pass},
                            {"executor", row.executor},
                            {"progress", row.progress},
                            {"exchange_seconds", row.comm},
                            {"compute_seconds", row.compute},
                            {"both_seconds", row.both},
                            {"hidden", hidden_share(bench, row)}});
  return json;
}

}  // namespace conclave::app
