// SPDX-License-Identifier: Apache-2.0
// The whole configuration of a run. Read strictly from YAML, checked across sections by resolve(), const afterwards. It
// says what to build; nothing is allocated and no rank is started here.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_config.h"
#include "comm/comm_config.h"
#include "config/document.h"
#include "data/data_config.h"
#include "model/memory_config.h"
#include "model/model_config.h"
#include "moe/moe_config.h"
#include "optim/optim_config.h"
#include "parallel/parallel_config.h"
#include "train/train_config.h"

namespace conclave::train {

struct RunConfig {
  model::ModelConfig model;
  moe::MoeConfig moe;
  parallel::ParallelConfig parallel;
  data::DataConfig data;
  optim::OptimConfig optim;
  TrainConfig train;
  EvalConfig eval;
  checkpoint::CheckpointConfig checkpoint;
  MetricsConfig metrics;
  model::MemoryConfig memory;
  comm::CommConfig comm;

  void fields(auto&& field) {
    field("model", model, "the decoder");
    field("moe", moe, "mixture-of-experts layers");
    field("parallel", parallel, "how ranks share the work");
    field("data", data, "token sources");
    field("optim", optim, "optimizer and schedule");
    field("train", train, "length, batch, precision");
    field("eval", eval, "validation");
    field("checkpoint", checkpoint, "saving and resuming");
    field("metrics", metrics, "what is written how often");
    field("memory", memory, "memory against time");
    field("comm", comm, "transport");
  }
};

// kTrain refuses what is not built yet and asks for data; kInfo only counts, so it turns such refusals into warnings.
enum class Purpose { kTrain, kInfo };

struct LoadOptions {
  int64_t world_size = 0;  // ranks; 0 = as many as the configuration needs at least
  Purpose purpose = Purpose::kTrain;
  bool check_files = false;  // token files and tokenizer must exist
};

struct LoadedConfig {
  RunConfig config;       // resolved
  config::Node document;  // what was written, with origins
  std::vector<std::string> warnings;
};

// Reads, checks and resolves. Throws ConfigError with every problem found, each with its place.
LoadedConfig load_config(const std::filesystem::path& file, std::span<const config::Override> overrides = {},
                         const LoadOptions& options = {});

// The same for a configuration made in code: checks values and relations, fills derived values (parallel.dp, head
// counts and widths), returns the warnings. Paths of data are left as they are.
std::vector<std::string> resolve(RunConfig& config, int64_t world_size, Purpose purpose = Purpose::kTrain);

// The configuration as YAML that load_config reads back as the same values.
std::string to_yaml(const RunConfig& config);

// Whether the model is made of stages of the device path: for a GPU, and for bf16 on the CPU. A train.device of `auto`
// is not decided yet.
bool takes_device_path(const RunConfig& config);

// What keeps a configuration from the device path.
struct DeviceObstacle {
  std::string key, what, remedy;
};
std::vector<DeviceObstacle> device_obstacles(const RunConfig& config);

// Ranks of the mesh: pp * dp * cp * tp of a resolved configuration.
int64_t world_size(const RunConfig& config);

// The schema of RunConfig.
const config::Schema& run_schema();

}  // namespace conclave::train
