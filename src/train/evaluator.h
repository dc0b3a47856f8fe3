// SPDX-License-Identifier: Apache-2.0
// Validation loss of each source: the same samples whatever the number of ranks, summed in their global order.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/validation_loader.h"
#include "model/executor.h"
#include "model/routing_totals.h"
#include "parallel/mesh.h"

namespace conclave::train {

struct Evaluation {
  std::string source;
  double loss = 0;  // nats per counted target
  int64_t targets = 0;
  std::vector<moe::StepTotals> layers;  // which experts this kind of text uses
};

// Sees each of this rank's micro-batches after its forward.
using SeeBatch = std::function<void(const Batch& batch, nn::Frame& frame)>;

// Of a model after `updates` steps. Collective; equal on all ranks.
std::vector<Evaluation> evaluate(model::Transformer& model, const data::ValidationLoader& loader,
                                 const parallel::Mesh& mesh, int64_t updates, const SeeBatch& see = nullptr);

}  // namespace conclave::train
