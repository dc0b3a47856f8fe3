// SPDX-License-Identifier: Apache-2.0
// The frozen model of `train.distill`: a checkpoint, dense or MoE, spread over the ranks of the run that learns from
// it. It gives the last hidden states of a batch; logits are made chunk by chunk where the loss is (nn/loss.h). It is
// no part of the run's state: checkpoints name it.
#pragma once

#include <memory>

#include "checkpoint/manifest.h"
#include "core/log.h"
#include "model/transformer.h"
#include "train/run_config.h"

namespace conclave::train {

class Teacher {
 public:
  // Opens what `run.train.distill` names, which must be there; logs what it takes. Collective. Throws ConfigError on
  // all ranks where it has another vocabulary or tokenizer or does not fit into the run's layout, NoCheckpointError
  // where it has no valid checkpoint. `run` is resolved and decides precision and device.
  Teacher(const RunConfig& run, const parallel::Mesh& mesh, Log& log);

  // Forward as in an evaluation. Collective over the ranks that share the batch or the experts.
  nn::TeacherSide look_at(const Batch& batch) const;
  // Where it was found, its step and the digest of its state: what a checkpoint of the run keeps.
  const checkpoint::Json& identity() const { return identity_; }

 private:
  void load(const RunConfig& config, const checkpoint::Manifest& manifest, const std::filesystem::path& folder);

  DistillConfig distill_;
  parallel::Mesh mesh_;
  std::unique_ptr<model::Transformer> model_;
  checkpoint::Json identity_;
  int64_t step_ = 0;
};

// Throws ConfigError where a run would go on with another teacher than the one that `saved`, an identity, is of.
void require_same_teacher(const checkpoint::Json& saved, const Teacher& teacher);

// The hash of `data.tokenizer`; empty where none is named.
std::string tokenizer_hash(const RunConfig& config);

}  // namespace conclave::train
