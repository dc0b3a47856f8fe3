// SPDX-License-Identifier: Apache-2.0
// Attention through the kernel that a device takes, against softmax written out in fp64.
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "cuda/device_runs.h"
#include "nn/attention_product.h"

namespace conclave::kernels {
namespace {

using nn::AttentionState;

struct DeviceAttentionTest : DeviceTest {};

struct Heads {
  int64_t sequences, heads, length, width;
};

struct Attended {
  Tensor out, dq, dk, dv;
};

// softmax(q·kᵀ / √H + mask)·v and its gradients, in fp64.
Attended written_out(const AttentionState& s, const Tensor& mask, const Tensor& dout_BNSH) {
  const auto wide = [](const Tensor& tensor) { return tensor.to(at::kDouble); };
  const Tensor q = wide(s.q_BNSH), k = wide(s.k_BNSH), v = wide(s.v_BNSH), dout = wide(dout_BNSH);
  const double scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  const Tensor p = at::softmax(q.matmul(k.transpose(2, 3)) * scale + mask, 3);
  const Tensor dp = dout.matmul(v.transpose(2, 3)), ds = p * (dp - (dp * p).sum(3, true)) * scale;
  return {p.matmul(v), ds.matmul(k), ds.transpose(2, 3).matmul(q), p.transpose(2, 3).matmul(dout)};
}

// Minus infinity where a token may not look: at later ones, and with `segments` at those of the first 5.
Tensor mask_of(const Heads& h, bool segments) {
  const int64_t S = h.length;
  Tensor sees = at::ones({S, S}, at::kBool).tril();
  if (segments && S > 5) sees.narrow(0, 5, S - 5).narrow(1, 0, 5).fill_(false);
  const Tensor minus = at::zeros({S, S}, at::kDouble) - std::numeric_limits<double>::infinity();
  return at::where(sees, at::zeros({S, S}, at::kDouble), minus).expand({h.sequences, 1, S, S}).contiguous();
}

TEST_F(DeviceAttentionTest, EqualsSoftmaxWrittenOut) {
  for (const auto dtype : kDeviceTypes) {
    for (const bool masked : {false, true}) {
      for (const Heads& h : {Heads{1, 1, 1, 8}, {2, 3, 17, 16}, {1, 2, 64, 64}, {3, 1, 33, 8}}) {
        SCOPED_TRACE(h.length);
        const auto random = [&](uint64_t seed) {
          return random_tensor({h.sequences, h.heads, h.length, h.width}, dtype, seed);
        };
        const AttentionState host{.q_BNSH = random(1), .k_BNSH = random(2), .v_BNSH = random(3)};
        const Tensor dout = random(4), mask = mask_of(h, masked);
        const auto results = run_on_device([&] {
          AttentionState state{
              .q_BNSH = to_device(host.q_BNSH), .k_BNSH = to_device(host.k_BNSH), .v_BNSH = to_device(host.v_BNSH)};
          if (masked) state.mask = to_device(mask.to(dtype));
          const Tensor dout_ = to_device(dout);
          const auto kernel = nn::attention_kernel(test_device(), dtype, masked);
          const NoWaits none;
          nn::attention_forward(kernel, state);
          const auto [dq, dk, dv] = nn::attention_backward(kernel, dout_, state);
          return std::vector<Tensor>{state.out_BNSH, dq, dk, dv};
        });
        const Attended expected = written_out(host, mask, dout);
        const double tolerance = dtype == at::kFloat ? 1e-5 : 0.02;
        size_t i = 0;
        for (const Tensor& exact : {expected.out, expected.dq, expected.dk, expected.dv}) {
          const double difference = (results[i].to(at::kDouble) - exact).abs().max().item<double>();
          EXPECT_LE(difference, tolerance * std::max(1.0, exact.abs().max().item<double>())) << "result " << i;
          ++i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
