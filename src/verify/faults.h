// SPDX-License-Identifier: Apache-2.0
// Mistakes that expert parallelism invites, planted on purpose into a layout under comparison, to prove that `conclave
// verify` finds them. They enter through what a step and a model let others replace; no stage knows about them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/choices.h"
#include "train/run_state.h"

namespace conclave::verify {

enum class Fault {
  kNone,
  kGradScale,    // the last rank divides its dense gradients once too little: they are dp times too large there
  kExpertScale,  // gradients of experts are ep times too large
  kLostToken,    // on the last rank the first token of every micro-batch comes back from the experts as zero
  kBiasLocal,    // loss-free biases move by each rank's own counts
  kNormTwice,    // the norm counts experts once for each data-parallel rank
  kWrongIds,     // on the last rank every token takes the experts that its neighbour should have
  kDriftedCopy,  // after each step a weight of the last rank is not what other ranks have
};
// "grad-scale", ...; without none.
std::vector<std::string> fault_names();
// Throws UsageError for an unknown name; empty = kNone.
Fault fault_named(const std::string& name);
// Throws ConfigError when the model, or so few ranks, have nothing that the fault could damage.
void require_possible(Fault fault, const train::RunConfig& config, int64_t ranks);

struct DamagePlan {
  Fault fault = Fault::kNone;
  bool sharded = false;  // parallel.zero: each rank has the gradients that it owns
};

// One rank's share of the damage.
class Damage : public train::StepProbe {
 public:
  // `truth` are the choices of the undamaged run. Both outlive this.
  Damage(const DamagePlan& plan, const parallel::Mesh& mesh, const moe::ChoiceRecord& truth);
  void reduced(Tensor dense, Tensor expert) override;
  double normed(double norm) override;
  // What `config` makes and asks, with the damage.
  void enter(model::TransformerConfig& config);
  void before_step(model::Transformer& model);
  void after_step(model::Transformer& model, std::span<const Batch> batches) const;

 private:
  bool on_last_rank() const { return mesh_.world().rank() == mesh_.world().size() - 1; }

  Fault fault_;
  bool sharded_;
  const parallel::Mesh& mesh_;
  const moe::ChoiceRecord& truth_;
  double expert_squares_ = 0;
  std::vector<Tensor> biases_;  // before the step
  std::unique_ptr<moe::ChoiceObserver> wrong_ids_;
};

}  // namespace conclave::verify
