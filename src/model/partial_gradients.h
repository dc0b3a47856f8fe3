// SPDX-License-Identifier: Apache-2.0
// Gradients of parameters that every tensor-parallel rank holds whole while each sees a share of the tokens or heads:
// norms, routers, gates. Their terms are added over the ranks in rank order, so replicas stay bit-equal.
#pragma once

#include <vector>

#include "nn/parameters.h"
#include "parallel/mesh.h"

namespace conclave::model {

class PartialGradients {
 public:
  PartialGradients(const nn::Parameters& parameters, const parallel::Mesh& mesh);
  // In place, in the elements [begin, end) of a buffer laid out like the dense parameters. Collective over tp.
  void sum(Tensor& dense, int64_t begin, int64_t end) const;

 private:
  struct Range {
    int64_t begin, end;
  };
  std::vector<Range> ranges_;
  comm::Group tp_;
};

}  // namespace conclave::model
