// SPDX-License-Identifier: Apache-2.0
// output = Σ_i factor_i · input_i with constant factors, in the order given.
#pragma once

#include "nn/stage.h"

namespace conclave::nn {

class WeightedSum : public Stage {
 public:
  struct Term {
    Slot slot;
    double factor;
  };
  WeightedSum(StageSite site, std::vector<Term> terms, Slot output)
      : Stage(std::move(site)), terms_(std::move(terms)), output_(output) {}
  std::vector<Slot> inputs() const override;
  std::vector<Slot> outputs() const override { return {output_}; }
  bool backward_reads_inputs() const override { return false; }
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;

 private:
  std::vector<Term> terms_;
  Slot output_;
};

}  // namespace conclave::nn
