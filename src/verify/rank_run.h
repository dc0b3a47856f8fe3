// SPDX-License-Identifier: Apache-2.0
// One rank of the user's model in training, under some layout, with everything it does open to comparison; and what one
// rank alone did, which others are compared with. Nothing is judged here.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "verify/faults.h"
#include "verify/layouts.h"

namespace conclave::verify {

// What one step of the reference was. Tensors are whole, by "name role".
struct StepTrace {
  train::StepReport report;
  double gradient_norm = 0;  // of the gradient sums below
  std::map<std::string, std::vector<std::byte>> gradient;
  std::map<std::string, std::vector<std::byte>> state;  // after the step: weights, moments, balancing
};

struct Reference {
  std::vector<StepTrace> steps;
  moe::ChoiceRecord choices;
};

std::string key_of(const parallel::StateEntry& entry);
// The elements of `whole`, the bytes of the entry's whole tensor, that the entry's box holds.
std::vector<std::byte> part_of(const std::vector<std::byte>& whole, const parallel::StateEntry& entry);

struct RankSetup {
  train::RunConfig config;  // under a layout, see with_layout
  moe::ChoiceObserver* choices = nullptr;
  Fault fault = Fault::kNone;
  const moe::ChoiceRecord* truth = nullptr;  // of the reference; only a fault needs it
};

class RankRun {
 public:
  // Collective over `world`, which has the layout's ranks. What `setup` points to outlives this.
  RankRun(const comm::Group& world, const RankSetup& setup);
  // Trains one step, counted from 0. Collective.
  train::StepReport step(int64_t number);
  // Goes on from the state after `before`, which `updates` optimizer steps led to.
  void load(const StepTrace& before, int64_t updates);
  parallel::StateDict gradient();
  parallel::StateDict state();
  // See train/replica_check.h. Collective.
  std::string unequal_copies();

 private:
  model::TransformerConfig model_config(const RankSetup& setup);

  train::RunConfig config_;
  parallel::Mesh mesh_;
  moe::ChoiceRecord none_;
  Damage damage_;
  model::Transformer model_;
  Failpoints failpoints_;
  train::TrainStep step_;
};

// Trains `steps` steps of `config` on this thread alone. Throws NumericError when the model does not even train here.
Reference make_reference(const train::RunConfig& config, int64_t steps);

}  // namespace conclave::verify
