// SPDX-License-Identifier: Apache-2.0
// Named state for checkpoints. Whoever owns state describes it here as boxes in global coordinates; the store writes
// and fills bytes and knows neither models nor optimizers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/group.h"

namespace conclave::parallel {

struct StateEntry {
  std::string name;  // one key per logical tensor and role; experts by global id: "layers.3.moe.experts.17.gate.weight"
  std::string role;  // param, adam_m, adam_v, buffer
  comm::DType dtype = comm::DType::kFloat32;
  std::vector<int64_t> global_shape;  // without padding
  std::vector<int64_t> offset;        // of this rank's box; same length as global_shape
  std::vector<int64_t> shape;         // of this rank's box
  std::span<std::byte> data;          // contiguous, this box's bytes; load writes here
  bool writes = true;                 // false on ranks that hold a replica another rank saves
};

using StateDict = std::vector<StateEntry>;

}  // namespace conclave::parallel
