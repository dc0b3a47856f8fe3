// SPDX-License-Identifier: Apache-2.0
// The loop of a run over rank threads: what is read between steps is read after the weights have arrived.
#include "train/trainer.h"

#include <fstream>

#include "core/log.h"
#include "data/token_files.h"
#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/saved_run.h"

namespace conclave::test {
namespace {

train::RunConfig run_config(const std::string& tokens, bool overlap) {
  train::RunConfig config = layout_config({.name = "Trainer"});
  config.data.train = {{.name = "t", .path = tokens}};
  config.data.valid = {{.name = "v", .path = tokens}};
  config.parallel.zero = 1;
  config.parallel.overlap_grad_reduce = config.parallel.overlap_param_gather = overlap;
  config.train.steps = 3;
  config.eval.every = 1;
  config.eval.batches = 2;
  config.checkpoint.every = 2;
  train::resolve(config, 2);
  return config;
}

struct Trained {
  std::vector<double> evaluations;  // the last one, by source
  std::string digest;               // of the last checkpoint
  std::string table;                // the digest of layer 0's hash table in it, where there is one
};

Trained train_on(const comm::Group& world, const train::RunConfig& config, const std::filesystem::path& where,
                 const std::shared_ptr<Log>& log = make_silent_log()) {
  at::set_num_threads(1);
  const parallel::Mesh mesh(world, config.parallel);
  data::LoaderOptions options;
  options.data = config.data;
  options.expected = {int64_t{1} << 20, ""};
  options.micro_batch_size = config.train.micro_batch_size;
  options.global_batch_size = config.train.global_batch_size;
  options.dp_rank = mesh.dp().rank();
  options.dp_size = mesh.dp().size();
  data::BatchLoader batches(options);
  const data::ValidationLoader validation(options, config.eval.batches);
  Failpoints none;
  checkpoint::Store store(world, where, {.keep_last = 2, .directory = {.lock = {0.05, 0.5}}}, none, *log);
  comm::Watchdog watchdog(0, world.rank(), std::make_shared<comm::Activity>());
  model::Transformer model(train::transformer_config(config), mesh);
  std::optional<train::Teacher> teacher;
  train::TrainStep step(config, mesh, model, none);
  if (config.train.distill) step.learn_from(&teacher.emplace(config, mesh, *log));
  train::Trainer trainer({config, mesh, model, step, batches, &validation, store, {}, watchdog, none, *log});
  EXPECT_EQ(trainer.run(), ExitCode::kDone);
  Trained trained;
  for (const auto& evaluation : trainer.last_evaluation()) trained.evaluations.push_back(evaluation.loss);
  checkpoint::ResumeRequest request;
  request.mode = "must";
  request.config = train::config_record(config);
  const auto manifest = store.resume(request, train::full_state(model, step, mesh));
  trained.digest = manifest ? manifest->state.hex() : "";
  const auto* table =
      manifest ? checkpoint::find_tensor(*manifest, "layers.0.moe.router.hash_table", train::kBufferRole) : nullptr;
  if (table != nullptr) trained.table = table->digest.hex();
  return trained;
}

std::filesystem::path write_tokens(const data::TemporaryDirectory& directory) {
  std::vector<int32_t> document(2000);
  for (size_t i = 0; i < document.size(); ++i) document[i] = static_cast<int32_t>(i * i % 31);
  data::write_documents(directory / "tokens", {document}, 32);
  return directory / "tokens";
}

// What rank 0 logs in a second run that goes on with the first one's checkpoint.
std::string log_of_resume(bool frozen_before, bool frozen_now) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_tokens(directory);
  run_ranks(2, [&](const comm::Group& world) {
    for (const bool again : {false, true}) {
      auto config = run_config(tokens, false);
      config.moe.router.frozen = again ? frozen_now : frozen_before;
      config.train.steps = again ? 4 : 2;
      const auto log = make_log(1);  // no console
      if (again) add_log_file(*log, directory / "logs", world.rank());
      train_on(world, config, directory / "run", log);
      log->flush();
    }
  });
  std::ifstream file(std::filesystem::path(directory / "logs") / "rank-00000.log");
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(TrainerRanks, SayThatARouterWhichWasFrozenBeginsToLearn) {
  const std::string note = "the router begins to learn";
  EXPECT_NE(log_of_resume(true, false).find(note), std::string::npos);
  EXPECT_EQ(log_of_resume(true, true).find(note), std::string::npos);
  const std::string other = log_of_resume(false, true);
  EXPECT_EQ(other.find(note), std::string::npos);
  EXPECT_NE(other.find("moe.router.frozen"), std::string::npos) << "what changed is said in any case";
}

TEST(TrainerRanks, GoesOnWithTheTeacherItHadOrNone) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_tokens(directory);
  const SavedRun one({.name = "One"}, 1), two({.name = "Two"}, 2);
  run_ranks(2, [&](const comm::Group& world) {
    const auto train = [&](const SavedRun* teacher, int64_t steps) {
      auto config = run_config(tokens, false);
      config.train.steps = steps;
      if (teacher != nullptr) config.train.distill = {.teacher = teacher->where()};
      train_on(world, config, directory / "run");
    };
    train(&one, 2);
    EXPECT_THROW(train(&two, 3), ConfigError);
    train(&one, 3);
    train(nullptr, 4);
  });
  std::ifstream file(std::filesystem::path(directory / "run") / "metrics.jsonl");
  std::vector<bool> taught;
  for (std::string line; std::getline(file, line);)
    if (line.find("\"grad_norm\"") != std::string::npos)
      taught.push_back(line.find("\"distill_loss\"") != std::string::npos);
  EXPECT_EQ(taught, (std::vector<bool>{true, true, true, false}));
}

TEST(TrainerRanks, CountTokensForAHashTableOnceAndThenReadTheCheckpoint) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_tokens(directory);
  run_ranks(2, [&](const comm::Group& world) {
    const auto train = [&](const std::string& where, int64_t sample, int64_t steps) {
      auto config = run_config(tokens, false);
      config.moe.balance = {};
      config.moe.router.type = "hash";
      config.moe.router.hash = {.table = moe::HashTable::kBalanced, .sample = sample};
      config.train.steps = steps;
      config.optim.schedule = optim::ScheduleType::kConstant;  // does not depend on the number of steps
      return train_on(world, config, directory / where);
    };
    const auto first = train("run", 1500, 2), others = train("others", 40, 2);
    ASSERT_FALSE(first.table.empty());
    EXPECT_NE(others.table, first.table) << "fewer tokens make another table";
    // The number of tokens to count is not what the run was made with: nobody counts.
    const auto after = train("run", 40, 3), whole = train("whole", 1500, 3);
    EXPECT_EQ(after.table, first.table);
    EXPECT_EQ(after.digest, whole.digest) << "as if it had never stopped";
    EXPECT_EQ(after.evaluations, whole.evaluations);
  });
}

TEST(TrainerRanks, EvaluatesAndSavesWeightsThatHaveArrived) {
  const data::TemporaryDirectory directory;
  const auto tokens = write_tokens(directory);
  run_ranks(2, [&](const comm::Group& world) {
    const auto waiting = train_on(world, run_config(tokens, false), directory / "waiting");
    const auto overlapped = train_on(world, run_config(tokens, true), directory / "overlapped");
    EXPECT_EQ(waiting.evaluations.size(), 1u);
    EXPECT_EQ(overlapped.evaluations, waiting.evaluations);
    EXPECT_EQ(overlapped.digest, waiting.digest);
    EXPECT_FALSE(waiting.digest.empty());
  });
}

}  // namespace
}  // namespace conclave::test
