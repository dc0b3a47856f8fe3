// SPDX-License-Identifier: Apache-2.0
// The experts of one layer on this rank: grouped SwiGLU over segments of rows, one product per (source, expert)
// segment. Gates are applied before the down projection (methods.md 3.2), so what is kept for backward is the rows and
// the pre-activations. R rows incl. padding, D model width, F the width of a row's expert: experts of a layer may
// differ (HMoE, Wang et al. 2024, arXiv 2408.10681), and hidden activations then lie as moe/hidden_rows.h says.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "moe/dispatcher.h"
#include "moe/expert_dropout.h"
#include "moe/hidden_rows.h"
#include "moe/output_sums.h"
#include "nn/parameters.h"

namespace conclave::moe {

struct ExpertWeights {
  nn::ParameterId gate_up_2FD, down_DF;
};

// Rows of experts, and the group whose transfers move on between the products over them.
struct Segments {
  std::span<const Segment> all;
  const comm::Group& link;
  // What dropout draws by, in training with it: the rows' global token ids, and the step.
  std::span<const int64_t> tokens_R = {};
  int64_t step = 0;
};

class Experts {
 public:
  Experts(const nn::Parameters& parameters, std::vector<ExpertWeights> local_experts,
          std::optional<ExpertDropout> dropout = {});
  bool has_dropout() const { return dropout_.has_value(); }

  struct Saved {
    Tensor h;                 // [Σ 2F], gate and up before the activation
    Tensor dout_RD, dh, act;  // from backward_input, for the weight gradients: [R, D], [Σ 2F], [Σ F]
  };
  // out = gate · (silu(x Wgᵀ) ⊙ x Wuᵀ) Wdᵀ for each row with its segment's expert.
  void forward(const Segments& segments, const Rows& in, Saved& saved, Tensor& out_RD) const;
  // The part of forward that backward needs: saved.h.
  void pre_activations(const Segments& segments, const Rows& in, Saved& saved) const;
  // Sets saved.dh and saved.act and the gradient of the rows; returns that of the gates [R].
  Tensor backward_input(const Segments& segments, const Rows& in, const Tensor& dout_RD, Saved& saved,
                        Tensor& din_RD) const;
  void backward_weight(const Segments& segments, const Rows& in, const Saved& saved, nn::Gradients& gradients) const;
  // What forward gave each row, without gates and dropout.
  void outputs(const Segments& segments, const Saved& saved, Tensor& out_RD) const;
  // Adds the sums of what forward gave each expert's rows, without gates and dropout: [local experts, D].
  void add_outputs(const Segments& segments, const Saved& saved, OutputSums& sums) const;
  std::vector<nn::ParameterId> parameters() const;

 private:
  // y(i) = x(i) · Wᵀ, or · W, for each segment i, W its expert's `member`. x and y give a segment's rows.
  template <typename X, typename Y>
  void product(const Segments& segments, const X& x, nn::ParameterId ExpertWeights::*member, bool transposed,
               const Y& y) const;
  HiddenRows hidden_rows(const Segments& segments) const { return {segments.all, widths_}; }
  void drop(const Segments& segments, const HiddenRows& rows, Tensor& act) const;

  const nn::Parameters& parameters_;
  std::vector<ExpertWeights> experts_;
  std::vector<int64_t> widths_;  // of each: F, as much of it as is here
  std::optional<ExpertDropout> dropout_;
};

}  // namespace conclave::moe
