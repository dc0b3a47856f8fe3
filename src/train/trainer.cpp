// SPDX-License-Identifier: Apache-2.0
#include "train/trainer.h"

#include <csignal>
#include <ctime>

#include "checkpoint/agreement.h"
#include "train/hash_tables.h"
#include "train/initial_weights.h"
#include "train/replica_check.h"

namespace conclave::train {

using checkpoint::Json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int64_t kReplicaCheckSteps = 50;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Whether SIGUSR1, SIGTERM or SIGINT is waiting. They are blocked for the whole process, so that a run ends at a step
// boundary with a checkpoint and no handler touches anything.
bool stop_signal_waiting() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaddset(&signals, signal);
  const timespec now{0, 0};
  return sigtimedwait(&signals, nullptr, &now) > 0;
}

}  // namespace

Trainer::Trainer(const TrainerParts& parts)
    : p_(parts),
      profile_(parse_step_range(parts.config.train.profile.value_or("")), parts.mesh.world(), parts.step.timeline(),
               parts.store.directory()) {
  resume();
  tokenizer_ = checkpoint::from_rank_zero(p_.mesh.world(), [&] { return tokenizer_hash(p_.config); });
  first_step_ = step_;
  const auto file = p_.store.directory().where() / "metrics.jsonl";
  const MetricsTarget target{file, p_.mesh.world().size(), p_.mesh.world().rank() == 0};
  checkpoint::agree(p_.mesh.world(), [&] { metrics_ = std::make_unique<Metrics>(p_.config, target, step_, p_.log); });
  if (restored_.is_object()) metrics_->restore(restored_.at("metrics"));
}

// A router that was frozen and learns now has moments of zero.
void Trainer::tell_of_thawed_router(const Json& saved_training) const {
  const Json::json_pointer frozen("/moe/router/frozen");
  const bool was = saved_training.contains(frozen) && saved_training.at(frozen) == "true";  // scalars are kept as text
  if (p_.config.moe.router.frozen || !was) return;
  p_.log.warn(
      "moe.router.frozen was true until step {} and is false now: the router begins to learn with moments of zero, "
      "whose "
      "age AdamW's correction takes for that of all others; a short warm-up after the change keeps its first updates "
      "small",
      step_);
}

void Trainer::resume() {
  checkpoint::ResumeRequest request;
  request.mode = p_.config.checkpoint.resume;
  request.config = config_record(p_.config);
  request.defaults = config_record(RunConfig());
  p_.watchdog.beat(0, "load");
  HostCopies copies(p_.model);
  const auto state = full_state(p_.model, p_.step, p_.mesh, &copies);
  const auto manifest = p_.store.resume(request, state);
  // Before earlier weights: where those have tables of their own, their experts belong to them.
  if (!manifest) make_hash_tables(p_.config, p_.batches, p_.model, p_.log);
  if (!manifest && !p_.config.model.init_from) return;
  if (!manifest) take_initial_weights(p_.config, p_.mesh.world(), state, p_.log);
  copies.write_back();
  if (!manifest) return;
  const auto& saved = manifest->extra;
  if (saved.at("data") != p_.batches.fingerprint()) {
    throw DataError(
        "the training data is not what this run started with, so its position means nothing\n"
        "  saved: {}\n  now:   {}\n  Start a new run directory, or restore the token files.",
        saved.at("data").get<std::string>(), p_.batches.fingerprint());
  }
  const int64_t batch = p_.config.train.global_batch_size;
  if (manifest->samples != manifest->step * batch) {
    throw ConfigError(
        "train.global_batch_size is {}, but the {} samples of the saved {} steps were taken {} at a time: the data "
        "would "
        "be read from another place\n  Set it back, or start a new run directory.",
        batch, manifest->samples, manifest->step, manifest->samples / std::max<int64_t>(1, manifest->step));
  }
  if (p_.step.teacher() != nullptr && saved.contains("teacher"))
    require_same_teacher(saved.at("teacher"), *p_.step.teacher());
  p_.step.set_updates(saved.at("updates"));
  step_ = saved_step_ = manifest->step;
  state_digest_ = manifest->state.hex();
  restored_ = saved;
  tell_of_thawed_router(manifest->config.training);
}

ExitCode Trainer::run() {
  start_ = Clock::now();
  while (step_ < p_.config.train.steps) {
    profile_.before(step_ + 1);
    one_step();
    const bool last = step_ == p_.config.train.steps;
    if (last || due(p_.config.eval.every)) evaluate();
    if (last || due(p_.config.checkpoint.every)) save();
    report_trace(profile_.after(step_));
    if (!last && should_stop()) {
      save();
      report_trace(profile_.finish(step_));
      p_.log.info("stopped at step {} with a checkpoint; the same command continues (exit code 75)", step_);
      return ExitCode::kRequeue;
    }
  }
  if (first_step_ == step_) evaluate();
  report_trace(profile_.finish(step_));
  return ExitCode::kDone;
}

void Trainer::report_trace(const std::string& file) {
  if (!file.empty()) p_.log.info("trace {} (open it in ui.perfetto.dev or chrome://tracing)", file);
}

void Trainer::one_step() {
  p_.watchdog.beat(step_ + 1, "step");
  const auto start = Clock::now();
  const auto batches = [&] {
    const Span span(&p_.step.timeline(), "data", "step");
    return p_.batches.take(step_);
  }();
  const double data_seconds = since(start);
  const StepReport report = p_.step.run(step_, batches);
  ++step_;
  if (step_ % kReplicaCheckSteps == 0) {
    p_.step.await_weights();
    check_replicas(p_.model);
  }
  metrics_->step(step_, report, {since(start), data_seconds});
  skipped_in_a_row_ = report.skipped ? skipped_in_a_row_ + 1 : 0;
  if (skipped_in_a_row_ == kMostSkippedInARow) {
    throw NumericError(
        "{} updates in a row were skipped, the last one at step {}: {}\n  The run does not recover by itself. Continue "
        "from an earlier checkpoint with a lower optim.lr or tighter optim.grad_clip.",
        skipped_in_a_row_, step_, *report.skipped);
  }
}

void Trainer::evaluate() {
  if (p_.validation == nullptr || evaluated_step_ == step_) return;
  p_.watchdog.beat(step_, "evaluation");
  p_.step.await_weights();
  const Span span(&p_.step.timeline(), "evaluation", "step");
  last_evaluation_ = train::evaluate(p_.model, *p_.validation, p_.mesh, step_);
  evaluated_step_ = step_;
  std::string line = fmt::format("eval step {}", step_);
  for (const auto& result : last_evaluation_) {
    line += fmt::format(" {} {:.4f}", result.source, result.loss);
    // Of a run that was complete when this attempt began, the record is there already.
    if (step_ > first_step_) metrics_->evaluation(step_, result.source, result.loss, result.targets);
  }
  p_.log.info(line);
}

void Trainer::save() {
  if (saved_step_ == step_) return;
  p_.watchdog.beat(step_, "save");
  p_.step.await_weights();
  check_replicas(p_.model);
  const Span span(&p_.step.timeline(), "save", "step");
  checkpoint::SaveContents contents;
  contents.step = step_;
  contents.samples = step_ * p_.config.train.global_batch_size;
  contents.tokens = contents.samples * p_.config.data.seq_len;
  contents.environment = p_.environment;
  contents.layout = {{"world", p_.mesh.world().size()}, {"dp", p_.mesh.dp().size()},
                     {"tp", p_.mesh.tp().size()},       {"ep", p_.mesh.ep().size()},
                     {"etp", p_.mesh.etp().size()},     {"zero", p_.config.parallel.zero}};
  contents.config = config_record(p_.config);
  contents.extra = {{"updates", p_.step.updates()}, {"data", p_.batches.fingerprint()}, {"metrics", metrics_->json()}};
  if (p_.step.teacher() != nullptr) contents.extra["teacher"] = p_.step.teacher()->identity();
  if (!tokenizer_.empty()) contents.extra["tokenizer"] = tokenizer_;
  HostCopies copies(p_.model);
  const auto saved = p_.store.save(contents, full_state(p_.model, p_.step, p_.mesh, &copies));
  saved_step_ = step_;
  state_digest_ = saved.state.hex();
  p_.log.info("saved step {} ({:.1f} MB in {:.2f}s) state {} {}", step_, static_cast<double>(saved.bytes) / 1e6,
              saved.seconds, saved.state.hex(), saved.folder.string());
}

bool Trainer::should_stop() const {
  const auto& limit = p_.config.train.max_time;
  std::vector<int32_t> stop{stop_signal_waiting() || (limit && seconds() >= limit->seconds)};
  p_.mesh.world().all_reduce(std::span<int32_t>(stop), comm::Reduce::kMax);
  return stop[0] != 0;
}

double Trainer::seconds() const { return since(start_); }

}  // namespace conclave::train
