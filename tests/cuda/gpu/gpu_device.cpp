// SPDX-License-Identifier: Apache-2.0
// The device of kernel tests is a GPU.
#include <ATen/Context.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>

#include "comm/nccl_group.h"
#include "core/device.h"
#include "cuda/device_runs.h"

namespace conclave::kernels {

// As a run sets it (app/rank_device.cpp): bits repeat.
std::string device_absence() {
  const std::string reason = device::available().reason;
  if (!reason.empty()) return reason;
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  return "";
}

at::Device test_device() { return at::kCUDA; }

NoWaits::NoWaits() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR); }
NoWaits::~NoWaits() { c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED); }

comm::Group device_group() { return comm::Group(comm::make_nccl_world(comm::Group())); }

Tensor to_device(const Tensor& tensor) { return tensor.to(at::kCUDA); }

std::vector<Tensor> run_on_device(const std::function<std::vector<Tensor>()>& body) {
  std::vector<Tensor> results;
  for (int run = 0; run < 3; ++run) {
    std::vector<Tensor> again;
    for (const Tensor& tensor : body()) again.push_back(tensor.to(at::kCPU));
    for (size_t i = 0; i < results.size(); ++i) {
      expect_same_bits(again[i], results[i], "run again, result " + std::to_string(i));
    }
    results = again;
  }
  return results;
}

}  // namespace conclave::kernels
