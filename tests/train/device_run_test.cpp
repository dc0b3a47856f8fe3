// SPDX-License-Identifier: Apache-2.0
// A whole run on the device path, on tensors of the CPU: trainer, evaluations, checkpoints; and one run directory that
// both paths continue.
#include "core/log.h"
#include "data/token_files.h"
#include "train/layout_runs.h"
#include "train/trainer.h"

namespace conclave::test {
namespace {

using Path = std::optional<model::DevicePath>;
const Path kHost = {}, kDevice = model::DevicePath{};
const Path kBf16 = model::DevicePath{.device = at::kCPU, .compute = at::kBFloat16};

train::RunConfig run_config(const std::string& tokens, int64_t steps) {
  train::RunConfig config = layout_config({.name = "Device"});
  config.data.train = {{.name = "t", .path = tokens}};
  config.data.valid = {{.name = "v", .path = tokens}};
  config.optim.schedule = optim::ScheduleType::kConstant;
  config.train.steps = steps;
  config.eval.every = 1;
  config.eval.batches = 2;
  config.checkpoint.every = 2;
  train::resolve(config, 1);
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
    at::set_num_threads(1);
    const auto config = run_config(directory_ / "tokens", steps);
    const parallel::Mesh mesh;
    const data::LoaderOptions options{.data = config.data,
                                      .expected = {int64_t{1} << 20, ""},
                                      .micro_batch_size = config.train.micro_batch_size,
                                      .global_batch_size = config.train.global_batch_size};
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

 private:
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

}  // namespace
}  // namespace conclave::test
