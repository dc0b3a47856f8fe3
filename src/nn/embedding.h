// SPDX-License-Identifier: Apache-2.0
// Token embedding: the first stage. Output [T, D]. Under tensor parallelism a rank holds the rows of some tokens and
// gives zeros for the others: terms of a sum over ranks.
#pragma once

#include "nn/stage.h"

namespace conclave::nn {

class Embedding : public Stage {
 public:
  Embedding(StageSite site, const Parameters& parameters, ParameterId weight_VD, Slot output);
  std::vector<Slot> inputs() const override { return {}; }
  std::vector<Slot> outputs() const override { return {output_}; }
  std::vector<ParameterId> parameters() const override { return {weight_}; }
  void forward(Frame& frame) override;
  void backward_input(Frame&) override {}
  void backward_weight(Frame& frame) override;

 private:
  // Row of each token in the part held here, -1 where it is held elsewhere.
  std::vector<int32_t> rows(const Batch& batch) const;

  const Parameters& parameters_;
  ParameterId weight_;
  Slot output_;
};

}  // namespace conclave::nn
