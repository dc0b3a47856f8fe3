// SPDX-License-Identifier: Apache-2.0
// RMSNorm (Zhang and Sennrich 2019): y = x / sqrt(mean(x²) + eps) · weight, over rows. `Norm` is the arithmetic, used
// inside other stages too; `NormStage` puts it between two slots. Rows may be spread over the ranks of a group
// (full-width QK-norm under tensor parallelism).
#pragma once

#include "comm/group.h"
#include "nn/stage.h"

namespace conclave::nn {

class Norm {
 public:
  struct Saved {
    Tensor x, rstd;
  };
  // `across` holds the parts of each row, all equally wide; then forward and backward_input are collective.
  Norm(const Parameters& parameters, ParameterId weight, double eps, const comm::Group& across = {});
  // Rows of x have the weight's width.
  Tensor forward(const Tensor& x, Saved& saved) const;
  Tensor backward_input(const Tensor& dy, const Saved& saved) const;
  void backward_weight(const Tensor& dy, const Saved& saved, Gradients& gradients) const;
  ParameterId weight() const { return weight_; }

 private:
  // Mean of a · b over whole rows, [rows, 1].
  Tensor row_mean(const Tensor& a, const Tensor& b) const;

  const Parameters& parameters_;
  ParameterId weight_;
  double eps_;
  comm::Group across_;
};

class NormStage : public Stage {
 public:
  NormStage(StageSite site, Norm norm, Slot input, Slot output);
  std::vector<Slot> inputs() const override { return {input_}; }
  std::vector<Slot> outputs() const override { return {output_}; }
  std::vector<ParameterId> parameters() const override { return {norm_.weight()}; }
  Redo redo() const override { return Redo::kSelective; }
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;
  void backward_weight(Frame& frame) override;

 private:
  Norm norm_;
  Slot input_, output_;
};

}  // namespace conclave::nn
