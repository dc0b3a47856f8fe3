// SPDX-License-Identifier: Apache-2.0
// Sum of branches into the residual stream: output = Σ inputs, in the order given.
#pragma once

#include "nn/stage.h"

namespace conclave::nn {

class Residual : public Stage {
 public:
  Residual(StageSite site, std::vector<Slot> inputs, Slot output);
  std::vector<Slot> inputs() const override { return inputs_; }
  std::vector<Slot> outputs() const override { return {output_}; }
  bool backward_reads_inputs() const override { return false; }
  Redo redo() const override { return Redo::kFull; }
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;

 private:
  std::vector<Slot> inputs_;
  Slot output_;
};

}  // namespace conclave::nn
