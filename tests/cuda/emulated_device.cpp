// SPDX-License-Identifier: Apache-2.0
// A device for kernel tests where there is no GPU: while run_on_device() runs, tensors of the CPU count as the
// device's, and launchers run their kernels in the emulation.
#include "cuda/device_runs.h"
#include "cuda/emulation.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

thread_local bool on = false;

// While it lives, tensors are on the device.
struct Placed {
  Placed() { on = true; }
  ~Placed() { on = false; }
};

}  // namespace

bool on_device(const Tensor&) { return on; }

// ATen has a form of its grouped product for the CPU, which leaves unset what the GPU's does.
bool has_grouped_product(const Tensor& tensor) { return on && tensor.scalar_type() == at::kBFloat16; }

cuda::Stream stream_of(const Tensor&) { return nullptr; }

std::string device_absence() { return ""; }

at::Device test_device() { return at::kCPU; }

NoWaits::NoWaits() = default;
NoWaits::~NoWaits() = default;

Tensor to_device(const Tensor& tensor) { return tensor.clone(); }

std::vector<Tensor> run_on_device(const std::function<std::vector<Tensor>()>& body) {
  std::vector<Tensor> results;
  for (const emulation::Order order : emulation::kOrders) {
    emulation::set_order(order);
    const Placed placed;
    const std::vector<Tensor> again = body();
    for (size_t i = 0; i < results.size(); ++i) {
      expect_same_bits(again[i], results[i], "another order of threads and blocks, result " + std::to_string(i));
    }
    results = again;
  }
  return results;
}

}  // namespace conclave::kernels
