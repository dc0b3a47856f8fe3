// SPDX-License-Identifier: Apache-2.0
// The `comm:` section.
#pragma once

#include "config/types.h"

namespace conclave::comm {

struct CommConfig {
  std::string backend = "auto";
  std::string progress = "poll";

  void fields(auto&& field) {
    field("backend", backend, "transport between ranks: auto, mpi (nccl comes with the CUDA build)");
    field("progress", progress, "who advances transfers: poll");
  }
};

}  // namespace conclave::comm
