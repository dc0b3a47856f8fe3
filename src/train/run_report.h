// SPDX-License-Identifier: Apache-2.0
// The blocks a person reads before and after a run: who takes part, what is trained on what, what it will take, and
// what came out.
#pragma once

#include <string>

#include "train/trainer.h"

namespace conclave::train {

struct Surroundings {
  std::string version;             // "conclave 0.1.0 (abc1234)"
  std::vector<std::string> hosts;  // by rank
  std::string transport;           // comm::Group::transport_name()
  int threads = 1;                 // of each rank
  std::filesystem::path run;
};

// Versions, layout, model, memory, data and schedule, in this order.
std::string startup_block(const RunConfig& config, const parallel::Mesh& mesh, const data::BatchLoader& batches,
                          const Surroundings& surroundings);
// Losses, tokens, time and what to type next.
std::string end_block(const Trainer& trainer, const RunConfig& config, const Surroundings& surroundings);
// Validation loss of each source.
std::string evaluation_table(const std::vector<Evaluation>& results);
// For each source and MoE layer, the experts it uses most and their shares.
std::string expert_table(const std::vector<Evaluation>& results, const std::vector<int>& moe_layers);
// Versions and hosts as JSON: env.json and every manifest.
checkpoint::Json environment(const RunConfig& config, const parallel::Mesh& mesh, const Surroundings& surroundings);

}  // namespace conclave::train
