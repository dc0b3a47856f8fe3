// SPDX-License-Identifier: Apache-2.0
// The state of the device path in memory of the host, where checkpoints read and write it: pinned, so that it travels
// at the speed of the link. On the host path nothing is copied.
#pragma once

#include <vector>

#include "model/transformer.h"

namespace conclave::train {

class HostCopies {
 public:
  explicit HostCopies(const model::Transformer& model) : copies_(model.device_path() != nullptr) {}
  // The tensor's numbers on the host, for as long as this lives; the tensor itself on the host path. Waits.
  Tensor of(const Tensor& tensor);
  // Writes what became of the copies back to where they came from. After a load.
  void write_back();

 private:
  struct Copy {
    Tensor origin, host;
  };
  bool copies_;
  std::vector<Copy> all_;
};

}  // namespace conclave::train
