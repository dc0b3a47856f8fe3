// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "parallel/mesh.h"

namespace conclave::test {

// All of `ranks` in one expert-parallel group, each with its own micro-batches.
inline parallel::Mesh expert_mesh(const comm::Group& ranks) {
  const int64_t size = ranks.size();
  return {ranks, parallel::mesh_sizes({.dp = size, .ep = size}, size)};
}

}  // namespace conclave::test
