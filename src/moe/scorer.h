// SPDX-License-Identifier: Apache-2.0
// The scores that a router chooses by: for each of its blocks x·Wᵀ in at least fp32, of this rank's tokens. With jitter
// (Fedus et al. 2021, selective precision) the router alone sees x·u, u uniform in [1 − ε, 1 + ε] for each element, in
// training only; experts see x.
#pragma once

#include "moe/moment.h"
#include "nn/frame.h"

namespace conclave::moe {

struct ScorerInput {
  Tensor x_TD;                         // with a context, that beside it: [T, 2D]
  std::span<const int64_t> token_ids;  // global, of these tokens
  Moment moment;
};

class Scorer {
 public:
  Scorer(const nn::Parameters& parameters, std::vector<nn::ParameterId> blocks, double jitter)
      : parameters_(parameters), blocks_(std::move(blocks)), jitter_(jitter) {}

  const std::vector<nn::ParameterId>& parameters() const { return blocks_; }
  // [T, S]; undefined without blocks.
  Tensor forward(const ScorerInput& in) const;
  // dx from dscores.
  Tensor backward_input(const Tensor& dscores_TS, const ScorerInput& in) const;
  void backward_weight(const Tensor& dscores_TS, const ScorerInput& in, nn::Gradients& gradients) const;

 private:
  bool jitters(const Moment& moment) const { return jitter_ > 0 && moment.training; }
  // x or a gradient times the factors of their elements.
  Tensor jittered(const Tensor& values_TD, const ScorerInput& in) const;
  // Calls body(parameter, its columns of `scores`).
  template <typename Body>
  void for_each_block(const Tensor& scores_TS, const Body& body) const;

  const nn::Parameters& parameters_;
  std::vector<nn::ParameterId> blocks_;
  double jitter_;
};

}  // namespace conclave::moe
