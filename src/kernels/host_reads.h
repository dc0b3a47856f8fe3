// SPDX-License-Identifier: Apache-2.0
// The only way in which stages of the device path look at a device's numbers from the host. Every read makes the host
// wait until the device has done all that was asked of it so far, so reads are counted, and tests hold a layer to the
// number it may make: none, or the one of its exchange. No globals: whoever runs a model owns the counter.
#pragma once

#include <cstdint>
#include <functional>

#include "core/tensor.h"

namespace conclave::kernels {

class HostReads {
 public:
  // Called in place of every wait, with the wait: so that somebody else can see that this thread stands there.
  using Around = std::function<void(const std::function<void()>& wait)>;

  // The tensor's numbers in memory of the host. Waits. Counts one, also for a tensor that is there already: what runs
  // on the CPU in a test is what runs on a device.
  Tensor read(const Tensor& tensor);
  int64_t count() const { return count_; }
  // Until `device` has done what its present stream was given so far, without looking at a number: after copies that
  // were started. Counts nothing.
  void wait_for(at::Device device) const;
  void observe(Around around) { around_ = std::move(around); }

 private:
  int64_t count_ = 0;
  Around around_ = [](const std::function<void()>& wait) { wait(); };
};

}  // namespace conclave::kernels
