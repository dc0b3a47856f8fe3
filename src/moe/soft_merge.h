// SPDX-License-Identifier: Apache-2.0
// Experts whose weights are merged, segment by segment (Lory, Zhong et al. 2024, arXiv 2405.03133): a segment's tokens
// pass one SwiGLU of the weights Σ_e q_e θ_e, q = softmax(R h̄), h̄ the mean input of the segment before. Nothing is
// chosen, nothing is dropped, no token travels; every rank holds all experts. M merges, E experts, D model width, F
// expert width.
#pragma once

#include "moe/segment_merges.h"
#include "nn/stage.h"

namespace conclave::moe {

struct SoftMergeWeights {
  nn::ParameterId router_ED;
  nn::ParameterId gate_up_E2FD, down_EDF;  // of the experts one after another
};

struct SoftMergeConfig {
  int64_t experts = 1;
  int64_t segment = 1;     // tokens
  bool own_first = false;  // in training; an evaluation always takes experts alike for a document's first segment
};

class SoftMerge : public nn::Stage {
 public:
  SoftMerge(nn::StageSite site, const nn::Parameters& parameters, SoftMergeConfig config, SoftMergeWeights weights,
            nn::Wire wire);
  std::vector<nn::Slot> inputs() const override { return {wire_.input}; }
  std::vector<nn::Slot> outputs() const override { return {wire_.output}; }
  std::vector<nn::ParameterId> parameters() const override;
  nn::Redo redo() const override { return nn::Redo::kFfn; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  struct Saved {
    SegmentMerges merges;
    Tensor means_MD, q_ME;            // of merges without a source: zero, and 1/E each
    Tensor gate_up_M2FD, down_MDF;    // merged weights
    Tensor h_T2F;                     // before the activation
    Tensor dgate_up_M2FD, ddown_MDF;  // from backward_input, for the gradients of experts
    Tensor dlogits_ME;                // and of the router
  };
  Tensor experts(nn::ParameterId weights) const;  // [E, elements of one]
  Tensor merged(const Tensor& q_ME, nn::ParameterId weights) const;
  void decide(const Tensor& x_TD, Saved& saved) const;
  // Gradients of the merged weights and of the input through the experts.
  Tensor through_experts(nn::Frame& frame, Saved& saved) const;
  // Adds to dx what comes through the decisions.
  void through_decisions(Saved& saved, Tensor& dx_TD) const;

  const nn::Parameters& parameters_;
  SoftMergeConfig config_;
  SoftMergeWeights weights_;
  nn::Wire wire_;
};

}  // namespace conclave::moe
