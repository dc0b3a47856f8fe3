// SPDX-License-Identifier: Apache-2.0
#include "comm/cuda_buffers.h"

#include <cuda_runtime_api.h>

#include "core/cuda_error.h"

namespace conclave::test {
namespace {

class CudaBuffers : public DeviceBuffers {
 public:
  std::span<std::byte> allocate(int64_t bytes) override {
    void* memory = nullptr;
    if (bytes > 0) device::must(cudaMalloc(&memory, bytes), "cudaMalloc");
    return {static_cast<std::byte*>(memory), static_cast<size_t>(bytes)};
  }
  void release(std::span<std::byte> data) override { device::must(cudaFree(data.data()), "cudaFree"); }
  void to_device(std::span<const std::byte> from, std::span<std::byte> to) override {
    if (from.empty()) return;
    device::must(cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyHostToDevice, nullptr),
                 "cudaMemcpyAsync");
  }
  void to_host(std::span<const std::byte> from, std::span<std::byte> to) override {
    if (!from.empty())
      device::must(cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyDeviceToHost, nullptr),
                   "cudaMemcpyAsync");
    device::must(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  }
};

}  // namespace

std::shared_ptr<DeviceBuffers> make_cuda_buffers() { return std::make_shared<CudaBuffers>(); }

}  // namespace conclave::test
