// SPDX-License-Identifier: Apache-2.0
// The decoder: parameters, and the list of stages that one micro-batch passes, wired by slots. It knows how to be built
// and what it holds; in which order stages run is the executor's business.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/model_shape.h"
#include "model/stage_memory.h"
#include "moe/balancer.h"
#include "moe/choices.h"
#include "moe/device_route.h"
#include "moe/dispatcher.h"
#include "moe/dispatcher_choice.h"
#include "moe/output_sums.h"
#include "moe/route_stage.h"
#include "nn/stage.h"
#include "parallel/mesh.h"

namespace conclave::model {

// Takes the device path: stages that work on tensors alone, which neither wait for the device nor look at its numbers.
// On the CPU it computes the same, for tests, and bf16.
struct DevicePath {
  at::Device device = at::kCPU;
  at::ScalarType compute = at::kFloat;  // of activations and of the weights they meet; masters keep `dtype`
};

struct TransformerConfig {
  ModelConfig model;
  moe::MoeConfig moe;
  MemoryConfig memory = {};
  int64_t chunks = 1;  // of the tokens of an MoE layer, which pass its exchanges apart
  bool document_mask = false;
  bool sequence_parallel = true;
  uint64_t seed = 1;
  bool bitwise_dispatch = false;  // `moe.dispatch.type: auto` keeps the order of sums
  at::ScalarType dtype = at::kFloat;
  std::optional<DevicePath> device = {};  // none: the host path
  // For those who check a model from outside (verify/): who sees every expert choice of training and outlives the
  // model, and what makes the dispatcher.
  moe::ChoiceObserver* choices = nullptr;
  std::function<std::unique_ptr<moe::Dispatcher>(const moe::DispatchConfig&, const comm::Group& ep)> make_dispatcher =
      moe::Dispatcher::make;
};

class Transformer {
 public:
  // Builds, allocates and initialises this rank's part: heads, widths and vocabulary are spread over the mesh's tp, the
  // experts of a layer over ep, an expert's width over etp. Collective, as are forward and backward.
  explicit Transformer(const TransformerConfig& config, const parallel::Mesh& mesh = {});
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  const ModelShape& shape() const { return shape_; }
  const parallel::Mesh& mesh() const { return mesh_; }
  nn::Parameters& parameters() { return parameters_; }
  const nn::Parameters& parameters() const { return parameters_; }
  const std::vector<std::unique_ptr<nn::Stage>>& stages() const { return stages_; }
  const std::vector<StageMemory>& stage_memory() const { return stage_memory_; }  // one for each stage
  const nn::SlotNames& slots() const { return slots_; }
  // MoE layers in order: the layer's number in the model, and what its routing and balancing carry across steps.
  const std::vector<int>& moe_layers() const { return moe_layers_; }
  moe::ModelState& state() { return state_; }
  const moe::ModelState& state() const { return state_; }
  const moe::Router& router(int moe_layer) const { return *routers_[moe_layer]; }
  // Null on the host path.
  const DevicePath* device_path() const { return device_ ? &*device_ : nullptr; }
  // What the host has changed since, for stages of the device path: before a step or an evaluation. Nothing to do on
  // the host path.
  void refresh();
  // Of the device path: every look from the host goes through it.
  kernels::HostReads& reads() const { return *reads_; }
  // Why `moe.dispatch.type: auto` became what it is, one line; empty where it did not choose.
  const std::string& dispatch_reason() const { return dispatch_reason_; }
  const moe::Balancer& balancer() const { return balancer_; }
  const moe::Decision& decision(nn::Frame& frame, int moe_layer) const;               // host path
  const moe::DeviceDecision& device_decision(nn::Frame& frame, int moe_layer) const;  // device path
  // Sums of what this rank's experts gave in a frame whose forward has run; null in an evaluation, and where
  // nobody wants them.
  const moe::OutputSums* outputs(nn::Frame& frame, int moe_layer) const;
  // Rows that this rank has sent in a frame of training whose forward has run, where similar ones travel as one.
  std::optional<int64_t> rows_sent(nn::Frame& frame, int moe_layer) const;
  // All decisions of a frame, as losses see them; `storage` keeps what the view points to.
  moe::LossView loss_view(nn::Frame& frame, std::vector<const moe::Decision*>& storage) const;

  // A frame for `batch`; without gradients it is an evaluation. `step` optimizer steps came before.
  nn::Frame frame(const Batch& batch, nn::Gradients* gradients, int64_t step = 0) const;
  double logit_scale() const { return logit_scale_; }  // that the loss multiplies logits by
  // Final hidden states [T, D] of a frame whose forward has run, and logits [V] of one of its tokens. With tp they are
  // spread over the ranks, and asking is a bug.
  Tensor hidden(nn::Frame& frame) const;
  Tensor logits(nn::Frame& frame, int64_t token) const;

 private:
  friend class TransformerBuilder;
  void make_dispatcher(const TransformerConfig& config, moe::DispatchNeeds needs);

  ModelShape shape_;
  parallel::Mesh mesh_;
  nn::Parameters parameters_;
  nn::SlotNames slots_;
  std::string dispatch_reason_;
  std::unique_ptr<moe::Dispatcher> dispatcher_;
  moe::ModelState state_;
  moe::Balancer balancer_;
  std::vector<double> relative_widths_;  // see moe::LossView
  std::vector<std::unique_ptr<nn::Stage>> stages_;
  std::vector<StageMemory> stage_memory_;
  std::vector<int> moe_layers_;
  std::vector<const moe::Router*> routers_;  // of the MoE layers, in their stages
  std::optional<DevicePath> device_;
  std::unique_ptr<kernels::HostReads> reads_ = std::make_unique<kernels::HostReads>();
  std::unique_ptr<moe::DeviceState> device_state_;  // null on the host path
  std::vector<nn::Slot> decisions_;
  std::vector<std::optional<nn::Slot>> outputs_;  // of the MoE layers: object OutputSums
  std::vector<std::optional<nn::Slot>>
      bucket_decisions_;  // of the MoE layers: object Decision, where rows are compressed
  nn::ParameterId head_ = 0;
  double logit_scale_ = 1;
  nn::Slot hidden_ = 0;
};

}  // namespace conclave::model
