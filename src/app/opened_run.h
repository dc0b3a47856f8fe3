// SPDX-License-Identifier: Apache-2.0
// A finished or running run, opened to be read: its configuration, its newest checkpoint, its model.
#pragma once

#include <filesystem>
#include <memory>

#include "core/log.h"
#include "model/transformer.h"
#include "parallel/mesh.h"
#include "text/tokenizer.h"
#include "train/run_config.h"

namespace conclave::app {

struct OpenedRun {
  train::RunConfig config;
  parallel::Mesh mesh;
  std::unique_ptr<model::Transformer> model;
  int64_t step = 0;
};

// Reads `<run>/config.resolved.yaml`, spreads the model over `world` (experts over as many ranks as divide them) and
// loads the newest valid checkpoint; on the CPU in fp32, wherever it was trained. Collective. Throws UsageError when
// `run` is no run directory, NoCheckpointError when it holds no checkpoint.
OpenedRun open_run(const std::filesystem::path& run, const comm::Group& world, Log& log);

// The tokenizer of the configuration. Throws ConfigError when it names none.
text::Tokenizer open_tokenizer(const train::RunConfig& config);

}  // namespace conclave::app
