// SPDX-License-Identifier: Apache-2.0
// The state of the device path in memory of the host, where checkpoints read and write it: pinned, so that it travels
// at the speed of the link, and all of it under way at once. On the host path nothing is copied.
#pragma once

#include <vector>

#include "model/transformer.h"

namespace conclave::train {

class HostCopies {
 public:
  // `model` outlives it.
  explicit HostCopies(const model::Transformer& model) : model_(model) {}
  // Gives pinned memory back to the machine: LibTorch would keep it, rounded up to powers of two, for the next copy of
  // the same size, which is a checkpoint away.
  ~HostCopies();
  HostCopies(const HostCopies&) = delete;
  HostCopies& operator=(const HostCopies&) = delete;
  // The tensor's numbers on the host, for as long as this lives; the tensor itself on the host path. They are there
  // after arrive().
  Tensor of(const Tensor& tensor);
  // Waits, once, for all that was started.
  void arrive();
  // Starts to write what became of the copies back to where they came from; what the device is given next finds it
  // there. After a load.
  void write_back();

 private:
  struct Copy {
    Tensor origin, host;
  };
  const model::Transformer& model_;
  std::vector<Copy> all_;
};

}  // namespace conclave::train
