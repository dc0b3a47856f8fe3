// SPDX-License-Identifier: Apache-2.0
#include "app/opened_run.h"

#include "checkpoint/resume.h"
#include "train/run_state.h"

namespace conclave::app {

text::Tokenizer open_tokenizer(const train::RunConfig& config) {
  if (!config.data.tokenizer) {
    throw ConfigError("data.tokenizer is not set: text cannot become tokens\n  Name a tokenizer.json, or `bytes`.");
  }
  return text::Tokenizer::load(*config.data.tokenizer);
}

OpenedRun open_run(const std::filesystem::path& run, const comm::Group& world, Log& log) {
  const auto file = run / "config.resolved.yaml";
  if (!std::filesystem::exists(file)) {
    throw UsageError(
        "{} is not the directory of a run: it has no config.resolved.yaml\n  Give the directory that `conclave train "
        "--run` used.",
        run.string());
  }
  OpenedRun opened;
  std::vector<config::Override> overrides{{config::Override::Kind::kUnset, "parallel.dp"},
                                          {config::Override::Kind::kSet, "parallel.tp=1"},
                                          {config::Override::Kind::kSet, "parallel.ep=1"},
                                          {config::Override::Kind::kSet, "parallel.etp=1"},
                                          {config::Override::Kind::kSet, "parallel.sequence_parallel=true"},
                                          {config::Override::Kind::kSet, "parallel.reduction=fast"},
                                          {config::Override::Kind::kSet, "train.device=cpu"},
                                          {config::Override::Kind::kSet, "train.precision=fp32"}};
  // Micro-batches stay as they were in training: they decide what an evaluation covers, and where capacity drops.
  const auto trained = train::load_config(file, overrides, {1, train::Purpose::kInfo, false}).config;
  overrides.push_back({config::Override::Kind::kSet,
                       fmt::format("train.global_batch_size={}", world.size() * trained.train.micro_batch_size)});
  opened.config = train::load_config(file, overrides, {world.size(), train::Purpose::kTrain, false}).config;
  opened.mesh = parallel::Mesh(world, opened.config.parallel);
  opened.model = std::make_unique<model::Transformer>(train::transformer_config(opened.config), opened.mesh);
  checkpoint::ResumeRequest request;
  request.check_config = false;
  request.load.partial = true;
  auto state = train::weight_state(*opened.model, opened.mesh);
  for (auto& entry : train::method_state(*opened.model, opened.mesh)) state.push_back(entry);
  opened.step = checkpoint::load_newest(world, run, request, state, log).manifest.step;
  return opened;
}

}  // namespace conclave::app
