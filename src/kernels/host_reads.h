// SPDX-License-Identifier: Apache-2.0
// The only way in which stages of the device path look at a device's numbers from the host. Every read makes the host
// wait until the device has done all that was asked of it so far, so reads are counted, and tests hold a layer to the
// number it may make: none, or the one of its exchange. No globals: whoever runs a model owns the counter.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace conclave::kernels {

class HostReads {
 public:
  // The tensor's numbers in memory of the host. Waits. Counts one, also for a tensor that is there already: what runs
  // on the CPU in a test is what runs on a device.
  Tensor read(const Tensor& tensor);
  int64_t count() const { return count_; }

 private:
  int64_t count_ = 0;
};

}  // namespace conclave::kernels
