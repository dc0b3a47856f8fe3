// SPDX-License-Identifier: Apache-2.0
// Where kernel tests find a device, and what they ask of every kernel there: the same bits each time. The same tests
// are linked with an emulated device (tests/cuda/emulated_device.cpp: runs anywhere, in several orders of blocks and
// threads) and with a GPU (tests/cuda/gpu/gpu_device.cpp).
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "comm/group.h"
#include "core/tensor.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {

// Why there is no device; empty where there is one.
std::string device_absence();

// Where to_device() puts tensors: a GPU, or the CPU that stands for one.
at::Device test_device();

// While it lives, whatever makes the host wait for the device is an error, except the one door (kernels/host_reads.h).
// Of this thread. On the CPU, where nothing waits, a failure for every operator that would wait on a GPU.
class NoWaits {
 public:
  NoWaits();
  ~NoWaits();
  NoWaits(const NoWaits&) = delete;
  NoWaits& operator=(const NoWaits&) = delete;

 private:
  uint64_t handle_ = 0;
};

// A group of one rank whose verbs take the device's memory: over NCCL on a GPU.
comm::Group device_group();

// A copy on the device.
Tensor to_device(const Tensor& tensor);

// Runs `body`, whose tensors are to_device()'s, and returns what it returns on the host. It runs several times: every
// time must give the same bits.
std::vector<Tensor> run_on_device(const std::function<std::vector<Tensor>()>& body);

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = device_absence(); !why.empty()) GTEST_SKIP() << why;
  }
};

Tensor index_tensor(const std::vector<int32_t>& values);

// The types of rows that kernels take.
inline const std::vector<at::ScalarType> kDeviceTypes = {at::kFloat, at::kBFloat16};

// Every element within the roundings of one result and `sums` times that of fp32, measured against the largest element
// of `expected` (double). A bf16 result is half a unit in its last place away: 2^-9 of its value.
void expect_rounded(const Tensor& actual, const Tensor& expected, const std::string& what, double sums = 1);

}  // namespace conclave::kernels
