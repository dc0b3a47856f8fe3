// SPDX-License-Identifier: Apache-2.0
// Dropout inside experts alone (Fedus et al. 2021, Switch Transformers, arXiv 2101.03961, 2.4): in training a token
// loses each hidden activation of an expert with probability p, and those that are left are divided by 1 - p. Who loses
// what is a function of (seed, step, layer, global token, expert, activation): layouts, recomputation and resumed runs
// lose the same ones. Knows no gradients: the mask of a gradient is that of the activation.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "moe/dispatcher.h"

namespace conclave::moe {

// The experts of a rank among all of their layer.
struct DropoutSite {
  uint64_t seed = 1;
  int layer = 0;                            // among the MoE layers
  int64_t experts = 0, first_expert = 0;    // of the layer; the first that is here
  int64_t widest = 0;                       // width of the widest expert, whole
  std::vector<int64_t> first_columns = {};  // of each that is here: where the part begins that is here; empty = at 0
};

class ExpertDropout {
 public:
  ExpertDropout(double rate, DropoutSite site) : rate_(rate), site_(std::move(site)) {}
  // Of segments whose experts are here equally wide. `tokens_R`: global ids of the rows' tokens; those of padding mean
  // nothing.
  void apply(std::span<const Segment> segments, std::span<const int64_t> tokens_R, int64_t step, Tensor& act_RF) const;

 private:
  double rate_;
  DropoutSite site_;
};

// Global token ids as rows of numbers that every payload of an exchange carries exactly: [T, 13], digits to base 16
// after the 448 that makes the scale of an fp8 row 1.
Tensor token_digits(std::span<const int64_t> tokens_T, const at::TensorOptions& options);
std::vector<int64_t> tokens_of(const Tensor& digits_R13);

}  // namespace conclave::moe
