// SPDX-License-Identifier: Apache-2.0
// Where this rank computes, decided by all ranks together before anything is made.
#pragma once

#include <string>

#include "comm/device_choice.h"
#include "comm/world.h"
#include "core/log.h"
#include "train/run_config.h"

namespace conclave::app {

// train.device for all ranks; says in the log what was taken and, for `auto` on the CPU, why. A GPU is in use
// afterwards. Collective. Throws ConfigError when `cuda` is wanted and cannot be had.
comm::DeviceChoice take_device(const train::RunConfig& config, const comm::World& world, Log& log);

// comm.backend with `auto` decided: what a GPU holds goes over NCCL.
std::string backend_for(const train::RunConfig& config, const comm::DeviceChoice& device);

}  // namespace conclave::app
