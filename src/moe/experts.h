// SPDX-License-Identifier: Apache-2.0
// The experts of one layer on this rank: grouped SwiGLU over segments of rows, one product per (source, expert)
// segment. Gates are applied before the down projection (methods.md 3.2), so what is kept for backward is the rows and
// the pre-activations. R rows incl. padding, D model width, F expert width.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "moe/dispatcher.h"
#include "moe/expert_dropout.h"
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
    Tensor h_R2F;                    // gate and up before the activation
    Tensor dout_RD, dh_R2F, act_RF;  // from backward_input, for the weight gradients
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
  // y[segment] = x[segment] · Wᵀ, or · W, with W the segment's expert's `member`.
  void product(const Segments& segments, const Tensor& x, nn::ParameterId ExpertWeights::*member, bool transposed,
               Tensor& y) const;
  void drop(const Segments& segments, Tensor& act_RF) const;

  const nn::Parameters& parameters_;
  std::vector<ExpertWeights> experts_;
  std::optional<ExpertDropout> dropout_;
};

}  // namespace conclave::moe
