// SPDX-License-Identifier: Apache-2.0
// Where this rank computes, decided by all ranks together before anything is made.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "comm/device_choice.h"
#include "comm/world.h"
#include "core/log.h"
#include "model/transformer.h"
#include "train/run_config.h"

namespace conclave::app {

// train.device for all ranks; says in the log what was taken and, for `auto` on the CPU, why: no GPU, or a
// configuration that a GPU cannot have yet. A GPU is in use afterwards. Collective. Throws ConfigError when `cuda` is
// wanted and cannot be had.
comm::DeviceChoice take_device(const train::RunConfig& config, const comm::World& world, Log& log);

// Tries the kernels that a model of the device path will use and that not every size can have, and says in the log
// which they are. Throws ConfigError where they refuse. Nothing to do on the host path.
void try_device_path(const model::Transformer& model, const train::RunConfig& config, Log& log);

// For kernels::HostReads::observe(): the watchdog sees that a rank stands at its device, as it sees one in a
// collective.
kernels::HostReads::Around shown_waits(std::shared_ptr<comm::Activity> activity);

// Runs `body`, which computes what `config` says. Where a GPU has no memory left, throws an Error (exit code 70) that
// says how much was asked for, how much there is, and which keys of the configuration make it less.
int with_memory_advice(const train::RunConfig& config, const std::function<int()>& body);

// comm.backend with `auto` decided: what a GPU holds goes over NCCL.
std::string backend_for(const train::RunConfig& config, const comm::DeviceChoice& device, int ranks);

}  // namespace conclave::app
