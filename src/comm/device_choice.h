// SPDX-License-Identifier: Apache-2.0
// Which device each rank computes on: train.device against what the hosts have. All ranks take the same kind; rank r of
// a host takes its GPU r. It sets nothing up; core/device.h does.
#pragma once

#include <string>

#include "comm/group.h"
#include "core/device.h"

namespace conclave::comm {

struct DeviceChoice {
  bool on_gpu = false;
  int index = 0;       // of the GPU, among those that this process sees
  std::string reason;  // why `auto` took the CPU; empty otherwise
};

// `wanted` is auto, cpu or cuda, `own` what this rank found (any value for cpu). Collective over `world`, unless it is
// cpu. Throws ConfigError on every rank when `cuda` is wanted and a rank lacks a GPU of its own.
DeviceChoice choose_device(const std::string& wanted, const Group& world, const device::Availability& own);

}  // namespace conclave::comm
