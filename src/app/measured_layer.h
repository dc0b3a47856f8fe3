// SPDX-License-Identifier: Apache-2.0
// One MoE layer of a model with everything that belongs to it (router, exchange, experts, shared experts) and nothing
// around it, to be run again and again: what `conclave bench layer` measures. It measures nothing itself.
#pragma once

#include <cstdint>
#include <vector>

#include "core/batch.h"
#include "model/transformer.h"
#include "train/run_config.h"

namespace conclave::app {

class MeasuredLayer {
 public:
  // The first MoE layer of `config`, on the device that it names, with random weights, tokens of one micro-batch, and
  // random normal numbers as input and as gradient of the output. Throws ConfigError where there is no MoE layer.
  explicit MeasuredLayer(const train::RunConfig& config);

  // As in a training step, with what it frees after forward and makes again before backward (memory.recompute). On a
  // GPU both return before it has computed.
  void forward();
  void backward();
  // Bytes that the layer holds after its forward until its backward, the input with them. Waits.
  int64_t held_bytes();

  const model::Transformer& model() const { return model_; }
  const model::LayerShape& shape() const { return model_.shape().layers[0]; }
  int64_t tokens() const { return batch_.tokens_count(); }
  int64_t width() const { return model_.shape().hidden; }
  at::TensorOptions options() const { return x_TD_.options(); }  // of its rows
  const Tensor& input() const { return x_TD_; }
  const Tensor& expert_gradient() const { return gradients_.experts[0]; }  // sums of all backwards
  // FLOPs of the matrix products of one forward; backward has twice as many.
  double forward_flops() const;
  // Where the last forward sent its tokens: rows of each expert.
  std::vector<int64_t> expert_rows();
  // Of the last forward; only on the device path.
  const kernels::Routed& routed() { return model_.device_decision(frame_, 0).routed; }

 private:
  void clear();

  model::Transformer model_;
  std::vector<size_t> stages_;  // of the layer, in order
  nn::Slot input_ = 0;
  std::vector<size_t> again_;      // of those, in order, the ones whose results are not kept for backward
  std::vector<nn::Slot> outputs_;  // that no stage of the layer reads
  std::vector<nn::Slot> results_;  // those of them that are tensors: known after a forward
  Batch batch_;
  nn::Gradients gradients_;
  nn::Frame frame_;
  Tensor x_TD_, dy_TD_;
};

// Bytes of memory that are handed out at present: of the host by the C library, of a GPU by LibTorch's allocator.
int64_t bytes_in_use(at::Device device);

}  // namespace conclave::app
