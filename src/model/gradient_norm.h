// SPDX-License-Identifier: Apache-2.0
// The global gradient norm, each expert counted once whoever owns it: sums of squares in fp64 for each logical tensor,
// added on the fixed tree in the order of their names, so that the bits do not depend on dp or ep. Also finds what is
// not finite.
#pragma once

#include <optional>
#include <string>

#include "comm/group.h"
#include "nn/parameters.h"

namespace conclave::model {

class GradientNorm {
 public:
  // Collective over `ep` (names of the experts elsewhere).
  GradientNorm(const nn::Parameters& parameters, const comm::Group& ep);
  // Square root of the sum of squares. Collective over `ep`; equal on all ranks. `dense` and `expert` are laid out like
  // the parameters.
  double operator()(const Tensor& dense, const Tensor& expert) const;
  // Name of the first dense tensor, or expert's tensor of this rank, that holds a NaN or an infinity.
  std::optional<std::string> non_finite_dense(const Tensor& dense) const;
  std::optional<std::string> non_finite_expert(const Tensor& expert) const;

 private:
  struct Piece {
    std::string name;
    int64_t begin, count;
  };
  static std::optional<std::string> search(const std::vector<Piece>& pieces, const Tensor& flat);

  std::vector<Piece> dense_, expert_;
  std::vector<size_t> order_;  // of (dense, experts of rank 0, experts of rank 1, ...) by name
  comm::Group ep_;
};

}  // namespace conclave::model
