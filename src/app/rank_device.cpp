// SPDX-License-Identifier: Apache-2.0
#include "app/rank_device.h"

#include <ATen/Context.h>

#include "nn/attention_product.h"

namespace conclave::app {

comm::DeviceChoice take_device(const train::RunConfig& config, const comm::World& world, Log& log) {
  const std::string& wanted = config.train.device;
  if (wanted == "cpu") return {};
  const auto obstacles = train::device_obstacles(config);
  comm::DeviceChoice choice;
  if (wanted == "auto" && world.size() > 1 && config.comm.backend == "mpi") {
    choice.reason = "comm.backend: mpi moves what lies in host memory; auto or nccl go with GPUs";
  } else if (wanted == "auto" && !obstacles.empty()) {
    // Known before anybody looks for a GPU. Where one is asked for, the configuration was refused.
    choice.reason = fmt::format("{}: no {} on a GPU yet; {}", obstacles[0].key, obstacles[0].what, obstacles[0].remedy);
  } else {
    choice = comm::choose_device(wanted, world.group(), device::available());
  }
  if (!choice.on_gpu) {
    log.info("device cpu: {}", choice.reason);
    return choice;
  }
  device::use(choice.index);
  // cuBLAS repeats its bits only with a workspace of a set size, asked for before its first product.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  check(at::globalContext().hasCUDA(), "LibTorch was asked for CUDA before its CUDA library was loaded");
  // A run that is repeated has the same bits: flash attention's backward adds in any order otherwise. Filling memory
  // that nobody reads is what deterministic algorithms also ask for, and is not wanted.
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  log.info("device cuda: GPU {}, {}", choice.index, device::describe(choice.index));
  return choice;
}

void try_device_path(const model::Transformer& model, const train::RunConfig& config, Log& log) {
  const model::DevicePath* path = model.device_path();
  if (path == nullptr) return;
  const auto kernel = nn::attention_kernel(path->device, path->compute, config.data.document_mask);
  nn::try_attention(kernel, path->device, path->compute, model.shape().head_dim);
  log.info("computes in {} beside fp32 masters; attention: {}", path->compute == at::kBFloat16 ? "bf16" : "fp32",
           nn::name_of(kernel));
}

std::string backend_for(const train::RunConfig& config, const comm::DeviceChoice& device, int ranks) {
  if (ranks == 1) return config.comm.backend;  // nothing travels
  return device.on_gpu && config.comm.backend == "auto" ? "nccl" : config.comm.backend;
}

}  // namespace conclave::app
