// SPDX-License-Identifier: Apache-2.0
#include "app/train_command.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "app/config_options.h"
#include "app/opened_run.h"
#include "app/rank_device.h"
#include "app/rank_resources.h"
#include "app/version.h"
#include "comm/world.h"
#include "model/thread_check.h"
#include "train/run_report.h"
#include "train/run_result.h"

namespace conclave::app {
namespace {

struct TrainOptions {
  ConfigOptions config;
  std::string run;
};

// Signals that end a run at the next step boundary, see Trainer. Blocked before any thread exists, so that all inherit
// it.
void block_stop_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

void require_canonical(const train::RunConfig& config, int threads) {
  if (config.parallel.reduction != parallel::Reduction::kCanonical) return;
  const auto shape =
      model::share_of(model::model_shape(config.model, config.moe), config.parallel.tp, config.parallel.etp);
  const auto obstacle = model::canonical_obstacle(shape, config.train.micro_batch_size * config.data.seq_len, threads);
  if (obstacle.empty()) return;
  throw ConfigError(
      "parallel.reduction: canonical cannot keep its promise on this machine: {}\n  Make that size a multiple of 16, "
      "run one "
      "thread a rank (OMP_NUM_THREADS=1), or use parallel.reduction: fast.",
      obstacle);
}

data::LoaderOptions loader_options(const train::RunConfig& config, const parallel::Mesh& mesh) {
  data::ExpectedTokens expected{config.model.vocab_size, ""};
  if (config.data.tokenizer) {
    const auto tokenizer = open_tokenizer(config);
    expected.tokenizer_hash = tokenizer.hash();
    if (tokenizer.vocab_size() > config.model.vocab_size) {
      throw ConfigError(
          "model.vocab_size is {}, but the tokenizer {} has {} entries\n  Set model.vocab_size to at least {}.",
          config.model.vocab_size, *config.data.tokenizer, tokenizer.vocab_size(), tokenizer.vocab_size());
    }
  }
  return {.data = config.data,
          .expected = expected,
          .micro_batch_size = config.train.micro_batch_size,
          .global_batch_size = config.train.global_batch_size,
          .dp_rank = mesh.dp().rank(),
          .dp_size = mesh.dp().size()};
}

// The most memory that any rank has held so far. Collective.
int64_t peak_bytes(const comm::Group& group) {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::vector<int64_t> peak{int64_t{usage.ru_maxrss} << 10};
  group.all_reduce(std::span<int64_t>(peak), comm::Reduce::kMax);
  return peak[0];
}

int train_with(comm::World& world, const TrainOptions& options, const train::LoadedConfig& loaded) {
  train::RunConfig config = loaded.config;
  const std::filesystem::path where =
      options.run.empty() ? std::filesystem::path("runs") / std::filesystem::path(options.config.file).stem()
                          : std::filesystem::path(options.run);
  const auto log = make_log(world.rank());
  const int threads = rank_threads(world.cores());
  at::set_num_threads(threads);
  require_canonical(config, threads);
  const auto device = take_device(config, world, *log);
  config.train.device = device.on_gpu ? "cuda" : "cpu";
  const auto group = world.group(backend_for(config, device, world.size()));
  if (world.size() > 1) world.advance_by(config.comm.progress);
  const parallel::Mesh mesh(group, config.parallel);
  data::BatchLoader batches(loader_options(config, mesh));
  std::optional<data::ValidationLoader> validation;
  if (!config.data.valid.empty()) validation.emplace(loader_options(config, mesh), config.eval.batches);

  const char* failpoint_text = std::getenv("CONCLAVE_FAILPOINTS");
  Failpoints failpoints(failpoint_text ? failpoint_text : "", group.rank());
  checkpoint::StoreOptions keep;
  keep.keep_last = config.checkpoint.keep_last;
  checkpoint::Store store(group, where, keep, failpoints, *log);
  add_log_file(*log, where / "logs", group.rank());
  const train::Surroundings around{kVersion, world.hosts(), group.transport_name(), threads, where};
  const auto environment = train::environment(config, mesh, around);
  log->info("{}", train::startup_block(config, mesh, batches, around));
  for (const auto& warning : loaded.warnings) log->warn("{}", warning);

  comm::Watchdog watchdog(config.train.hang_timeout.seconds, group.rank(), world.activity(), world.roll_call());
  model::Transformer model(train::transformer_config(config), mesh);
  model.reads().observe(shown_waits(world.activity()));
  try_device_path(model, config, *log);
  if (!model.dispatch_reason().empty()) log->info("dispatch {}", model.dispatch_reason());
  std::optional<train::Teacher> teacher;
  train::TrainStep step(config, mesh, model, failpoints);
  if (config.train.distill) step.learn_from(&teacher.emplace(config, mesh, *log));
  train::Trainer trainer({config, mesh, model, step, batches, validation ? &*validation : nullptr, store, environment,
                          watchdog, failpoints, *log});
  // Not before the resume is accepted: a refused start leaves the run as it was.
  store.directory().write(group, "config.resolved.yaml", train::to_yaml(config));
  store.directory().write(group, "env.json", environment.dump(2) + "\n");
  const ExitCode code = trainer.run();
  if (code == ExitCode::kDone) {
    store.directory().write(group, "result.json", train::run_result(trainer, config, peak_bytes(group)).dump(2) + "\n");
    log->info("{}", train::end_block(trainer, config, around));
  }
  return static_cast<int>(code);
}

int train_in(comm::World& world, const TrainOptions& options) {
  const auto loaded =
      train::load_config(options.config.file, options.config.overrides, {world.size(), train::Purpose::kTrain, true});
  return with_memory_advice(loaded.config, [&] { return train_with(world, options, loaded); });
}

}  // namespace

void add_train_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<TrainOptions>();
  auto* command = app.add_subcommand("train", "train a model, from its newest checkpoint if there is one");
  add_config_options(*command, options->config);
  command->add_option("--run", options->run,
                      "directory of the run: checkpoints, metrics, logs (default: runs/NAME of CONFIG)");
  command->footer(
      "Example: two ranks, experts spread over both; repeat the command to continue after a crash\n"
      "  launch/run 2 configs/quickstart.yaml --run runs/first --set train.steps=200");
  command->callback([options, &run] {
    run = [options] {
      block_stop_signals();
      keep_memory();
      return comm::run_world([&](comm::World& world) { return train_in(world, *options); });
    };
  });
}

}  // namespace conclave::app
