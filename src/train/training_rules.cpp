// SPDX-License-Identifier: Apache-2.0
#include <set>

#include "config/suggest.h"
#include "train/config_rules.h"
#include "train/profile.h"

namespace conclave::train {
namespace {

using Sources = std::vector<data::SourceConfig>;

void check_sources(const Sources& sources, const std::string& path, Rules& rules) {
  std::set<std::string> names;
  for (size_t i = 0; i < sources.size(); ++i) {
    rules.require(names.insert(sources[i].name).second, {fmt::format("{}[{}].name", path, i)},
                  fmt::format("'{}' names two sources; reports need different names", sources[i].name));
  }
}

void check_data(const RunConfig& config, Rules& rules) {
  const data::DataConfig& data = config.data;
  rules.require(!rules.training() || !data.train.empty(), {"data.train"},
                "no training data; give at least one {name, path} (made by `conclave data tokenize`)");
  check_sources(data.train, "data.train", rules);
  check_sources(data.valid, "data.valid", rules);
  for (size_t i = 0; i < data.valid.size(); ++i) {
    rules.warn_if(data.valid[i].weight != data::SourceConfig().weight, {fmt::format("data.valid[{}].weight", i)},
                  "has no effect: validation sources are reported one by one, not mixed");
  }
  rules.require(data.seq_len <= config.model.max_seq_len, {"data.seq_len", "model.max_seq_len"},
                fmt::format("sequences of {} tokens, but the model is made for at most {} (model.max_seq_len)",
                            data.seq_len, config.model.max_seq_len));
}

void check_optim(const RunConfig& config, Rules& rules) {
  const optim::OptimConfig& optim = config.optim;
  const int64_t steps = config.train.steps;
  rules.require(optim.betas.size() == 2, {"optim.betas"},
                fmt::format("needs two numbers, such as [0.9, 0.95], not {}", optim.betas.size()));
  const bool constant = optim.schedule == optim::ScheduleType::kConstant;
  rules.require(constant || optim.min_lr <= optim.lr, {"optim.min_lr", "optim.lr"},
                fmt::format("min_lr {} is greater than lr {}", optim.min_lr, optim.lr));
  const std::vector<std::string> kinds = {"norm", "bias", "router_bias", "embedding", "router"};
  for (size_t i = 0; i < optim.no_decay.size(); ++i) {
    const std::string& kind = optim.no_decay[i];
    rules.require(std::find(kinds.begin(), kinds.end(), kind) != kinds.end(), {fmt::format("optim.no_decay[{}]", i)},
                  fmt::format("unknown kind of parameter '{}'{}; one of: {}", kind, config::did_you_mean(kind, kinds),
                              fmt::join(kinds, ", ")));
  }
  rules.warn_if(constant && optim.decay.has_value(), {"optim.decay"},
                "has no effect: the schedule is constant, so the learning rate never decays");
  const int64_t warmup = optim.warmup.of(steps);
  rules.require(
      warmup <= steps, {"optim.warmup", "train.steps"},
      fmt::format("warm-up of {} steps in a run of {}; shorten it, or give a share such as 1%", warmup, steps));
  const int64_t decay = optim.decay ? optim.decay->of(steps) : 0;
  rules.require(
      warmup > steps || decay <= steps - warmup, {"optim.decay", "optim.warmup", "train.steps"},
      fmt::format("a decay of {} steps after a warm-up of {} does not fit into {} steps", decay, warmup, steps));
}

void check_profile(const RunConfig& config, Rules& rules) {
  if (!config.train.profile) return;
  const auto range = parse_step_range(*config.train.profile);
  rules.require(range.has_value(), {"train.profile"},
                fmt::format("'{}' is no range of steps; write 10..12, or 10 for one step", *config.train.profile));
  rules.warn_if(range && range->first > config.train.steps, {"train.profile", "train.steps"},
                fmt::format("has no effect: the run ends with step {}", config.train.steps));
}

// A mistyped word would be taken for the path of a checkpoint.
void check_resume(const RunConfig& config, Rules& rules) {
  const std::string& resume = config.checkpoint.resume;
  const std::vector<std::string> words = {"auto", "must", "never"};
  if (std::find(words.begin(), words.end(), resume) != words.end()) return;
  rules.require(resume.find('/') != std::string::npos, {"checkpoint.resume"},
                fmt::format("unknown value '{}'{}; auto, must, never, or a path with a '/'", resume,
                            config::did_you_mean(resume, words)));
}

// One problem for `file` with each of `endings` that does not exist.
void require_files(const std::string& file, std::initializer_list<const char*> endings, const std::string& key,
                   Rules& rules) {
  std::string missing;
  for (const char* ending : endings) {
    std::error_code error;
    if (std::filesystem::is_regular_file(file + ending, error)) continue;
    missing += (missing.empty() ? "" : ", no ") + file + ending;
  }
  rules.require(missing.empty(), {key},
                fmt::format("no {}; make it with `conclave data tokenize`, or correct the path", missing));
}

void make_absolute(std::string& path, const std::string& key, const Rules& rules) {
  if (path.empty()) return;
  path = std::filesystem::absolute(rules.directory_of(key) / path).lexically_normal().string();
}

void resolve_sources(Sources& sources, const std::string& path, Rules& rules) {
  for (size_t i = 0; i < sources.size(); ++i) {
    const std::string key = fmt::format("{}[{}].path", path, i);
    make_absolute(sources[i].path, key, rules);
    if (rules.options().check_files) require_files(sources[i].path, {".bin", ".idx"}, key, rules);
  }
}

// Whether they are there matters to a run that begins, and it looks itself.
void resolve_init_from(config::TextOrList& init_from, Rules& rules) {
  if (auto* one = std::get_if<std::string>(&init_from)) return make_absolute(*one, "model.init_from", rules);
  auto& list = std::get<std::vector<std::string>>(init_from);
  rules.require(!list.empty(), {"model.init_from"}, "names no run; give one, a list of them, or null");
  for (size_t i = 0; i < list.size(); ++i) make_absolute(list[i], fmt::format("model.init_from[{}]", i), rules);
}

// Whether the teacher is there and fits, the run itself finds out when it begins.
void check_distill(const RunConfig& config, Rules& rules) {
  if (!config.train.distill) return;
  rules.require(!config.train.distill->teacher.empty(), {"train.distill.teacher"},
                "names no run; give the directory of one, or set train.distill: null");
  rules.warn_if(config.train.distill->weight == 0, {"train.distill.weight"},
                "the teacher runs and changes nothing; train.distill: null saves its time");
}

void check_mup(const RunConfig& config, Rules& rules) {
  const model::ModelConfig& model = config.model;
  const model::MupConfig defaults;
  const bool given = model.mup.base_width != defaults.base_width || model.mup.base_head_dim != defaults.base_head_dim ||
                     model.mup.base_experts != defaults.base_experts;
  rules.warn_if(given && model.init != model::Init::kMup, {"model.mup", "model.init"},
                "has no effect: model.init is not mup");
  const std::string& router = config.moe.router.type;
  const bool unknown = router == "hierarchical" || router == "zero_compute" || router == "default_moe";
  rules.require(model.init != model::Init::kMup || !config.moe.enabled || !unknown, {"model.init", "moe.router.type"},
                fmt::format("mup knows no factor that keeps the weights of router '{}' when the number of experts "
                            "changes; use another router, or model.init: normal",
                            router));
  rules.require(model.init != model::Init::kMup || !config.moe.enabled || !config.moe.router.recurrent,
                {"model.init", "moe.router.recurrent"},
                "mup knows no scale for a router with a state; set moe.router.recurrent: null, or model.init: normal");
}

void check_fan_in(const RunConfig& config, Rules& rules) {
  const model::ModelConfig& model = config.model;
  rules.warn_if(model.init_scale != model::ModelConfig().init_scale && model.init != model::Init::kFanIn,
                {"model.init_scale", "model.init"}, "has no effect: model.init is not fan_in");
}

}  // namespace

void check_training(const RunConfig& config, Rules& rules) {
  check_data(config, rules);
  check_optim(config, rules);
  check_resume(config, rules);
  check_profile(config, rules);
  check_distill(config, rules);
  check_mup(config, rules);
  check_fan_in(config, rules);
  rules.require(config.checkpoint.keep_last >= 2, {"checkpoint.keep_last"},
                "must be at least 2: a crash during a save needs the one before");
}

void resolve_paths(RunConfig& config, Rules& rules) {
  resolve_sources(config.data.train, "data.train", rules);
  resolve_sources(config.data.valid, "data.valid", rules);
  std::string& resume = config.checkpoint.resume;
  if (resume.find('/') != std::string::npos) make_absolute(resume, "checkpoint.resume", rules);
  if (config.model.init_from) resolve_init_from(*config.model.init_from, rules);
  if (config.moe.router.hash && config.moe.router.hash->embeddings)
    make_absolute(*config.moe.router.hash->embeddings, "moe.router.hash.embeddings", rules);
  if (config.train.distill) make_absolute(config.train.distill->teacher, "train.distill.teacher", rules);
  if (!config.data.tokenizer || *config.data.tokenizer == "bytes") return;
  make_absolute(*config.data.tokenizer, "data.tokenizer", rules);
  if (rules.options().check_files) require_files(*config.data.tokenizer, {""}, "data.tokenizer", rules);
}

}  // namespace conclave::train
