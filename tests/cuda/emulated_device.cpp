// SPDX-License-Identifier: Apache-2.0
// A device for kernel tests where there is no GPU: while run_on_device() runs, tensors of the CPU count as the
// device's, and launchers run their kernels in the emulation.
#include <ATen/record_function.h>

#include <algorithm>
#include <array>
#include <string_view>

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

// Operators whose result depends on numbers that the host must see first.
constexpr auto kWaiting = std::to_array<std::string_view>(
    {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::allclose", "aten::nonzero",
     "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
     "aten::repeat_interleave"});
// Copies that may cross, and where their `non_blocking` stands.
struct Crossing {
  std::string_view overload;
  size_t non_blocking;
};
constexpr auto kCrossing = std::to_array<Crossing>({{"device", 3}, {"dtype_layout", 5}, {"other", 2}});
// A GPU's grouped product looks at nothing; the CPU's does.
constexpr std::string_view kOfCpu = "aten::_grouped_mm";
thread_local int inside_of_cpu = 0;

bool waits(const at::RecordFunction& called, const c10::OperatorName& name) {
  if (std::find(kWaiting.begin(), kWaiting.end(), name.name) != kWaiting.end()) return true;
  const auto crossing = std::find_if(kCrossing.begin(), kCrossing.end(),
                                     [&](const Crossing& c) { return c.overload == name.overload_name; });
  return name.name == "aten::to" && crossing != kCrossing.end() && !called.inputs().at(crossing->non_blocking).toBool();
}

std::unique_ptr<at::ObserverContext> begin_of_call(const at::RecordFunction& called) {
  const auto name = called.operator_name();
  if (!name) return nullptr;
  inside_of_cpu += name->name == kOfCpu;
  if (inside_of_cpu == 0 && waits(called, *name)) ADD_FAILURE() << *name << " makes a GPU's host wait";
  return nullptr;
}

void end_of_call(const at::RecordFunction& called, at::ObserverContext*) {
  const auto name = called.operator_name();
  inside_of_cpu -= name && name->name == kOfCpu;
}

}  // namespace

bool on_device(const Tensor&) { return on; }

// ATen has a form of its grouped product for the CPU, which leaves unset what the GPU's does.
bool has_grouped_product(const Tensor& tensor) { return on && tensor.scalar_type() == at::kBFloat16; }

cuda::Stream stream_of(const Tensor&) { return nullptr; }

std::string device_absence() { return ""; }

at::Device test_device() { return at::kCPU; }

NoWaits::NoWaits() {
  if (on)
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(begin_of_call, end_of_call).scopes({at::RecordScope::FUNCTION}).needsInputs(true));
}
NoWaits::~NoWaits() {
  if (handle_ != 0) at::removeCallback(handle_);
}

comm::Group device_group() { return {}; }

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
