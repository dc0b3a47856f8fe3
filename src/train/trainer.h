// SPDX-License-Identifier: Apache-2.0
// The loop of a run: *when* steps, evaluations, saves and stops happen. What a step does is in step.h.
#pragma once

#include <chrono>

#include "checkpoint/store.h"
#include "comm/watchdog.h"
#include "data/batch_loader.h"
#include "train/config_record.h"
#include "train/evaluator.h"
#include "train/metrics.h"
#include "train/profile.h"
#include "train/run_state.h"

namespace conclave::train {

// What the trainer is given; all outlive it.
struct TrainerParts {
  const RunConfig& config;
  const parallel::Mesh& mesh;
  model::Transformer& model;
  TrainStep& step;
  data::BatchLoader& batches;
  const data::ValidationLoader* validation;  // null = no validation sources
  checkpoint::Store& store;
  checkpoint::Json environment;  // for manifests
  comm::Watchdog& watchdog;
  Failpoints& failpoints;
  Log& log;
};

class Trainer {
 public:
  // So many skipped updates one after the other end the run with NumericError: the weights no longer move.
  static constexpr int64_t kMostSkippedInARow = 20;

  // Resumes from the newest checkpoint, if there is one. Collective.
  explicit Trainer(const TrainerParts& parts);
  // Trains to the last step. Returns kDone, or kRequeue when a signal or train.max_time stopped it after a save.
  // Collective.
  ExitCode run();

  int64_t first_step() const { return first_step_; }
  const std::vector<Evaluation>& last_evaluation() const { return last_evaluation_; }
  // Of the checkpoint last written or read, in hexadecimal digits; empty before there is one.
  const std::string& state_digest() const { return state_digest_; }
  const Metrics& metrics() const { return *metrics_; }
  double seconds() const;

 private:
  void resume();
  void tell_of_thawed_router(const checkpoint::Json& saved_training) const;
  void one_step();
  void evaluate();
  void save();
  bool should_stop() const;
  bool due(int64_t every) const { return every > 0 && step_ % every == 0; }

  void report_trace(const std::string& file);

  TrainerParts p_;
  Profile profile_;
  checkpoint::Json restored_;  // what the checkpoint held beside tensors; null on a fresh start
  std::unique_ptr<Metrics> metrics_;
  std::vector<Evaluation> last_evaluation_;
  int64_t step_ = 0, first_step_ = 0;  // steps done
  int64_t saved_step_ = -1, evaluated_step_ = -1;
  std::string state_digest_, tokenizer_;
  int64_t skipped_in_a_row_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace conclave::train
