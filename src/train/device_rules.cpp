// SPDX-License-Identifier: Apache-2.0
// Rules of train.device and comm.backend. What the other ranks' hosts have is only known when they meet:
// comm/device_choice.h.
#include "core/device.h"
#include "train/config_rules.h"

namespace conclave::train {

void check_device(const RunConfig& config, Rules& rules) {
  const std::string& device = config.train.device;
  rules.one_of("train.device", device, {"auto", "cpu", "cuda"});
  rules.one_of("comm.backend", config.comm.backend, {"auto", "mpi", "nccl"}, {"ucc"});
  const bool needs_gpu = device == "cuda", needs_nccl = config.comm.backend == "nccl";
  rules.require(!(needs_nccl && device == "cpu"), {"comm.backend"},
                "nccl moves what a GPU holds, and train.device is cpu; use comm.backend: mpi");
  rules.require(!(config.comm.backend == "mpi" && device == "cuda"), {"comm.backend"},
                "mpi moves what the host holds, and train.device is cuda; use comm.backend: auto or nccl");
  // A plan may be counted on a machine that is not the one to train on.
  if (!(needs_gpu || (needs_nccl && device != "cpu")) || !rules.training()) return;
  const device::Availability gpus = device::available();
  rules.require(gpus.count > 0 || !needs_gpu, {"train.device"},
                fmt::format("cuda: {}; or use train.device: cpu", gpus.reason));
  rules.require(gpus.count > 0 || !needs_nccl, {"comm.backend"},
                fmt::format("nccl: {}; or use comm.backend: mpi", gpus.reason));
}

}  // namespace conclave::train
