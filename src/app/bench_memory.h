// SPDX-License-Identifier: Apache-2.0
// What one MoE layer holds between forward and backward, counted by the allocator, beside the least that a backward
// without recomputation needs: its input and the pre-activations of its experts (figure F6).
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/run_config.h"

namespace conclave::app {

struct MemoryBench {
  struct Level {
    model::Recompute recompute;
    int64_t held_bytes;
  };
  int64_t tokens = 0, least_bytes = 0;
  std::vector<Level> levels;  // of memory.recompute, that of the configuration's default first

  double held(const Level& level) const {
    return static_cast<double>(level.held_bytes) / static_cast<double>(least_bytes);
  }
};

// Of one rank, on the CPU. Throws ConfigError where there is no MoE layer.
MemoryBench measure_memory(train::RunConfig config);

std::string memory_report(const MemoryBench& bench);
nlohmann::json to_json(const MemoryBench& bench);

}  // namespace conclave::app
