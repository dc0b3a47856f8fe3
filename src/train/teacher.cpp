// SPDX-License-Identifier: Apache-2.0
#include "train/teacher.h"

#include <ATen/TensorOperators.h>

#include "checkpoint/agreement.h"
#include "checkpoint/resume.h"
#include "config/json.h"
#include "core/error.h"
#include "model/accounting.h"
#include "text/tokenizer.h"
#include "train/config_record.h"
#include "train/run_state.h"
#include "train/step.h"

namespace conclave::train {
namespace {

using checkpoint::Json;
using checkpoint::Resumed;

// Its manifest; tensors are read when there is a model to hold them.
Resumed open(const std::string& where, const comm::Group& world, Log& log) {
  checkpoint::ResumeRequest request;
  request.check_config = false;
  request.load.partial = true;
  try {
    return checkpoint::load_newest(world, where, request, {}, log);
  } catch (const Error& error) {
    checkpoint::throw_error(static_cast<int>(error.code()),
                            fmt::format("train.distill.teacher: {}\n  Name a run of `conclave train`, or one of its "
                                        "checkpoints.",
                                        error.what()));
  }
}

// How a run with that model computes in the place of `run`: its layout, precision and device.
RunConfig config_of(const Resumed& found, const RunConfig& run, int64_t ranks) {
  RunConfig config = run;
  std::tie(config.model, config.moe) = recorded_model(found.manifest.config, found.folder.string());
  config.model.init_from.reset();
  config.train.distill.reset();
  // They act in training alone, and a teacher does not train.
  config.moe.router.jitter = 0;
  config.moe.router.noise = "none";
  config.moe.experts.dropout = 0;
  config.parallel.executor = parallel::ExecutorType::kSequential;
  if (config.model.vocab_size != run.model.vocab_size)
    throw ConfigError(
        "train.distill.teacher: {} has a vocabulary of {} tokens, this run one of {}\n  Logits are compared token by "
        "token: set model.vocab_size and the tokenizer to the teacher's, or choose another teacher.",
        found.folder.string(), config.model.vocab_size, run.model.vocab_size);
  try {
    resolve(config, ranks);
  } catch (const ConfigError& error) {
    throw ConfigError(
        "train.distill.teacher: {} cannot run in this run's layout; keys and values are the teacher's:\n{}",
        found.folder.string(), error.what());
  }
  return config;
}

// Empty where nobody can tell any more.
std::string hash_of_teacher(const checkpoint::Manifest& manifest) {
  if (manifest.extra.contains("tokenizer")) return manifest.extra.at("tokenizer").get<std::string>();
  const Json::json_pointer key("/data/tokenizer");
  if (!manifest.config.training.contains(key) || !manifest.config.training.at(key).is_string()) return "";
  try {
    return text::Tokenizer::load(manifest.config.training.at(key).get<std::string>()).hash();
  } catch (const Error&) {
    return "";
  }
}

void require_same_tokenizer(const Resumed& found, const RunConfig& run, const comm::Group& world, Log& log) {
  const std::string own = checkpoint::from_rank_zero(world, [&] { return tokenizer_hash(run); });
  const std::string its = checkpoint::from_rank_zero(world, [&] { return hash_of_teacher(found.manifest); });
  if (own.empty() || its.empty())
    return log.warn("train.distill.teacher: tokenizers are not compared, since that of {} is not known",
                    own.empty() ? "this run (data.tokenizer)" : "the teacher");
  if (own != its)
    throw ConfigError(
        "train.distill.teacher: {} was trained with another tokenizer (hash {}, of this run's data.tokenizer {}), so "
        "its logits are of other tokens\n  Tokenize the data with the teacher's tokenizer.json, or choose another "
        "teacher.",
        found.folder.string(), its, own);
}

}  // namespace

std::string tokenizer_hash(const RunConfig& config) {
  return config.data.tokenizer ? text::Tokenizer::load(*config.data.tokenizer).hash() : "";
}

Teacher::Teacher(const RunConfig& run, const parallel::Mesh& mesh, Log& log) : distill_(run.train.distill.value()) {
  const comm::Group& world = mesh.world();
  const Resumed found = open(distill_.teacher, world, log);
  const RunConfig config = config_of(found, run, world.size());
  require_same_tokenizer(found, run, world, log);
  mesh_ = parallel::Mesh(world, config.parallel);
  model_ = std::make_unique<model::Transformer>(transformer_config(config), mesh_);
  load(config, found.manifest, found.folder);
  step_ = found.manifest.step;
  identity_ = {{"path", distill_.teacher},
               {"folder", found.folder.string()},
               {"step", found.manifest.step},
               {"state", found.manifest.state.hex()}};
  const auto& shape = model_->shape();
  const auto& parameters = model_->parameters();
  log.info(
      "teacher {} (step {}): {} parameters, {:.0f} MB of them on each rank, {} FLOPs per token; none of it is in the "
      "figures of the model",
      found.folder.string(), step_, model::count_parameters(shape, model::Counter::kExact).total(),
      static_cast<double>(parameters.flat_size(false) + parameters.flat_size(true)) * sizeof(float) / 1e6,
      model::count_flops(shape, model::Counter::kExact, config.data.seq_len).forward());
}

void Teacher::load(const RunConfig& config, const checkpoint::Manifest& manifest, const std::filesystem::path& folder) {
  HostCopies copies(*model_);
  auto state = weight_state(*model_, mesh_, &copies);
  for (auto& entry : method_state(*model_, mesh_)) state.push_back(std::move(entry));
  checkpoint::check_entries(mesh_.world(), manifest, state, /*partial=*/true);
  checkpoint::load_entries(mesh_.world(), folder, manifest, state);
  copies.write_back();
  model_->refresh();
  check(config.model.vocab_size == model_->shape().vocab, "a teacher has the run's vocabulary");
}

nn::TeacherSide Teacher::look_at(const Batch& batch) const {
  // What is evaluated is the model of its last step.
  nn::Frame frame = model_->frame(batch, nullptr, std::max<int64_t>(step_ - 1, 0));
  const auto& stages = model_->stages();
  // All but the loss, the last one, which would make logits of all tokens.
  for (size_t s = 0; s + 1 < stages.size(); ++s) {
    stages[s]->forward(frame);
    frame.poll();
    model::free_after_forward(stages, model_->stage_memory()[s], s, frame);
  }
  const nn::Stage& loss = *stages.back();
  const Tensor& hidden = frame.value(loss.inputs().at(0));
  const double scale = model_->logit_scale();
  return {.hidden_TD = scale == 1 ? hidden : hidden * scale,
          .head_VD = model_->parameters().value(loss.parameters().at(0)),
          .weight = distill_.weight,
          .temperature = distill_.temperature};
}

void require_same_teacher(const Json& saved, const Teacher& teacher) {
  const Json& now = teacher.identity();
  if (saved.at("state") == now.at("state")) return;
  throw ConfigError(
      "train.distill.teacher: this run has learned from {} (step {}, state {}), and {} is at step {} with state {}\n"
      "  Name the checkpoint {} itself, go on without a teacher (train.distill: null), or begin a new run from this "
      "one's weights (model.init_from).",
      saved.at("folder").get<std::string>(), saved.at("step").get<int64_t>(), saved.at("state").get<std::string>(),
      now.at("path").get<std::string>(), now.at("step").get<int64_t>(), now.at("state").get<std::string>(),
      saved.at("folder").get<std::string>());
}

}  // namespace conclave::train
