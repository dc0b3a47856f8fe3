// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>

#include "core/cuda_error.h"
#include "core/device.h"
#include "core/error.h"

namespace conclave::device {
namespace {

// The oldest generation that the kernels are compiled for.
constexpr int kOldestMajor = 8;
constexpr int64_t kMebibyte = int64_t{1} << 20;

std::string visible_devices() {
  const char* text = std::getenv("CUDA_VISIBLE_DEVICES");
  return text == nullptr ? "" : fmt::format("; CUDA_VISIBLE_DEVICES is '{}'", text);
}

cudaDeviceProp properties_of(int index) {
  cudaDeviceProp properties{};
  must(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  return properties;
}

// Why LibTorch's GPU kernels cannot be had; empty when they are there. Its library is not linked: see Cuda.cmake.
std::string load_kernels() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return "";
  const char* error = dlerror();
  return fmt::format(
      "LibTorch's GPU library cannot be loaded: {}; install what it names (./launch/setup --gpu brings NVIDIA's "
      "libraries)",
      error == nullptr ? "unknown reason" : error);
}

}  // namespace

void must(int code, const char* call) {
  const auto error = static_cast<cudaError_t>(code);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that is reported must not be met again by the next call
  if (error == cudaErrorMemoryAllocation)
    throw Error(
        ExitCode::kBug,
        fmt::format("{}: the GPU is out of memory: use a smaller train.micro_batch_size, more ranks, or a GPU with "
                    "more memory",
                    call));
  throw Error(ExitCode::kBug,
              fmt::format("{} failed: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error)));
}

Availability available() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return {0,
            fmt::format("no GPU can be used here: {} ({}); this build needs an NVIDIA driver for CUDA {} or newer "
                        "(look at nvidia-smi){}",
                        cudaGetErrorString(error), cudaGetErrorName(error), CUDART_VERSION / 1000, visible_devices())};
  }
  if (count == 0) return {0, fmt::format("this machine has no GPU that CUDA can see{}", visible_devices())};
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, index) == cudaSuccess && properties.major >= kOldestMajor) continue;
    cudaGetLastError();
    return {0,
            fmt::format("GPU {} ({}) is of generation sm_{}{}, and the oldest supported is sm_{}0; leave it out with "
                        "CUDA_VISIBLE_DEVICES",
                        index, properties.name, properties.major, properties.minor, kOldestMajor)};
  }
  if (const std::string reason = load_kernels(); !reason.empty()) return {0, reason};
  return {count, ""};
}

void use(int index) { must(cudaSetDevice(index), "cudaSetDevice"); }

std::string describe(int index) {
  const cudaDeviceProp properties = properties_of(index);
  return fmt::format("{}, sm_{}{}, {:.1f} GiB", properties.name, properties.major, properties.minor,
                     static_cast<double>(properties.totalGlobalMem) / (1024.0 * kMebibyte));
}

Memory memory() {
  size_t free = 0, total = 0;
  must(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

}  // namespace conclave::device
