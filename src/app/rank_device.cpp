// SPDX-License-Identifier: Apache-2.0
#include "app/rank_device.h"

namespace conclave::app {

comm::DeviceChoice take_device(const train::RunConfig& config, const comm::World& world, Log& log) {
  const std::string& wanted = config.train.device;
  if (wanted == "cpu") return {};
  comm::DeviceChoice choice = comm::choose_device(wanted, world.group(), device::available());
  // A GPU that nothing computes on yet is not taken unasked; check_device() refuses it where it is asked for.
  if (wanted == "auto" && choice.on_gpu) choice = {false, 0, "training on a GPU is not built yet"};
  if (!choice.on_gpu) {
    log.info("device cpu: {}", choice.reason);
    return choice;
  }
  device::use(choice.index);
  log.info("device cuda: GPU {}, {}", choice.index, device::describe(choice.index));
  return choice;
}

std::string backend_for(const train::RunConfig& config, const comm::DeviceChoice& device) {
  return device.on_gpu && config.comm.backend == "auto" ? "nccl" : config.comm.backend;
}

}  // namespace conclave::app
