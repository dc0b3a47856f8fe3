// SPDX-License-Identifier: Apache-2.0
// A whole run on the device path, on tensors of the CPU: trainer, evaluations, checkpoints; and one run directory that
// both paths continue.
#include "core/log.h"
#include "data/token_files.h"
#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/trainer.h"

namespace conclave::test {
namespace {

using Path = std::optional<model::DevicePath>;
const Path kHost = {}, kDevice = model::DevicePath{};
const Path kBf16 = model::DevicePath{.device = at::kCPU, .compute = at::kBFloat16};

train::RunConfig run_config(const std::string& tokens, int64_t steps, const Layout& layout) {
  train::RunConfig config = layout_config({.name = "Device"});
  config.data.train = {{.name = "t", .path = tokens}};
  config.data.valid = {{.name = "v", .path = tokens}};
  config.optim.schedule = optim::ScheduleType::kConstant;
  config.train.steps = steps;
  config.eval.every = 1;
  config.eval.batches = 2;
  config.checkpoint.every = 2;
  config.parallel.ep = layout.ep, config.parallel.zero = layout.zero;
  config.parallel.reduction = parallel::Reduction::kFast;
  train::resolve(config, layout.ranks());
  return config;
}

struct Trained {
  double evaluation = 0;
  std::string digest;
  std::vector<int64_t> dispatched;  // in the evaluation, first layer
};

class DeviceRun : public ::testing::Test {
 protected:
  DeviceRun() {
    std::vector<int32_t> document(4000);
    for (size_t i = 0; i < document.size(); ++i) document[i] = static_cast<int32_t>(i * i % 31);
    data::write_documents(directory_ / "tokens", {document}, 32);
  }
  // Continues what is in the directory.
  Trained train(const std::string& name, int64_t steps, const Path& path) {
    return train_rank(name, steps, path, {}, {});
  }
  Trained train_on(const Layout& layout, const std::string& name, int64_t steps, const Path& path) {
    std::vector<Trained> all(layout.ranks());
    run_ranks(layout.ranks(),
              [&](const comm::Group& world) { all[world.rank()] = train_rank(name, steps, path, world, layout); });
    return all[0];
  }

 private:
  Trained train_rank(const std::string& name, int64_t steps, const Path& path, const comm::Group& world,
                     const Layout& layout) {
    at::set_num_threads(1);
    const auto config = run_config(directory_ / "tokens", steps, layout);
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
    const auto log = make_silent_log();
    Failpoints none;
    checkpoint::Store store(mesh.world(), directory_ / name, {.keep_last = 2, .directory = {}}, none, *log);
    comm::Watchdog watchdog(0, 0, std::make_shared<comm::Activity>());
    auto of_model = train::transformer_config(config);
    of_model.device = path;
    model::Transformer model(of_model, mesh);
    train::TrainStep step(config, mesh, model, none);
    train::Trainer trainer({config, mesh, model, step, batches, &validation, store, {}, watchdog, none, *log});
    EXPECT_EQ(trainer.run(), ExitCode::kDone);
    const auto& evaluation = trainer.last_evaluation().at(0);
    return {evaluation.loss, trainer.state_digest(), evaluation.layers.at(0).dispatched_E};
  }

  data::TemporaryDirectory directory_;
};

TEST_F(DeviceRun, EvaluatesLikeTheHost) {
  const Trained host = train("host", 2, kHost), device = train("device", 2, kDevice);
  EXPECT_NEAR(device.evaluation / host.evaluation, 1.0, 1e-5);
  EXPECT_EQ(device.dispatched, host.dispatched);
}

TEST_F(DeviceRun, ContinuesBitwiseAfterAnEnd) {
  for (const auto& [name, path] : {std::pair("fp32", kDevice), std::pair("bf16", kBf16)}) {
    SCOPED_TRACE(name);
    const Trained whole = train(std::string(name) + "whole", 4, path);
    train(std::string(name) + "parts", 2, path);
    const Trained parts = train(std::string(name) + "parts", 4, path);
    EXPECT_EQ(parts.digest, whole.digest);
    EXPECT_EQ(parts.evaluation, whole.evaluation);
  }
}

// What stages read is a copy; a run that is complete evaluates without a step before.
TEST_F(DeviceRun, EvaluatesWhatWasLoaded) {
  for (const auto& [name, path] : {std::pair("fp32", kDevice), std::pair("bf16", kBf16)}) {
    SCOPED_TRACE(name);
    const Trained trained = train(name, 3, path), loaded = train(name, 3, path);
    EXPECT_EQ(loaded.evaluation, trained.evaluation);
    EXPECT_EQ(loaded.dispatched, trained.dispatched);
  }
}

TEST_F(DeviceRun, ContinuesARunOfTheHostWhichContinuesItAgain) {
  const Trained alone = train("alone", 6, kHost);
  train("mixed", 2, kHost);
  train("mixed", 4, kDevice);
  const Trained mixed = train("mixed", 6, kHost);
  EXPECT_NEAR(mixed.evaluation / alone.evaluation, 1.0, 1e-5);
  EXPECT_NE(mixed.digest, alone.digest) << "the device path rounds otherwise, so it was taken";
}

class DeviceRunRanks : public DeviceRun {};

// What ranks with their own experts and moments have saved, one rank of the host continues, and the other way round.
TEST_F(DeviceRunRanks, ContinueRunsOfTheHostAndGiveThemBack) {
  const Trained alone = train("alone", 6, kHost);
  for (const Layout layout : {Layout{2, 2, 0}, Layout{2, 2, 1}, Layout{4, 2, 1}}) {
    const auto name = fmt::format("dp{}ep{}zero{}", layout.dp, layout.ep, layout.zero);
    SCOPED_TRACE(name);
    train(name, 2, kHost);
    train_on(layout, name, 4, kDevice);
    const Trained mixed = train(name, 6, kHost);
    EXPECT_NEAR(mixed.evaluation / alone.evaluation, 1.0, 1e-5);
  }
}

TEST_F(DeviceRunRanks, ContinueBitwiseAndEvaluateLikeTheHost) {
  const Trained host = train("host", 4, kHost);
  for (const Layout layout : {Layout{2, 2, 0}, Layout{4, 2, 1}}) {
    const auto name = fmt::format("dp{}zero{}", layout.dp, layout.zero);
    SCOPED_TRACE(name);
    const Trained whole = train_on(layout, name + "whole", 4, kDevice);
    train_on(layout, name + "parts", 2, kDevice);
    const Trained parts = train_on(layout, name + "parts", 4, kDevice);
    EXPECT_EQ(parts.digest, whole.digest);
    EXPECT_EQ(parts.evaluation, whole.evaluation);
    EXPECT_NEAR(whole.evaluation / host.evaluation, 1.0, 1e-5);
  }
}

}  // namespace
}  // namespace conclave::test
