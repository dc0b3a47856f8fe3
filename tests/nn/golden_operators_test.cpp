// SPDX-License-Identifier: Apache-2.0
// RMSNorm, RoPE, SwiGLU and cross entropy with their gradients against PyTorch's in fp64 (tests/golden/units.json).
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "kernels/cross_entropy.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "support/golden.h"

namespace conclave {
namespace {

class GoldenOperators : public ::testing::Test {
 protected:
  Tensor read(const std::string& unit, const std::string& name) const {
    const auto& entry = units_.at(unit).at(name);
    const auto data = entry.at("data").get<std::vector<double>>();
    Tensor tensor = at::zeros(entry.at("shape").get<std::vector<int64_t>>(), at::kDouble);
    check(tensor.numel() == static_cast<int64_t>(data.size()), "units.json: a shape does not fit its data");
    std::copy(data.begin(), data.end(), tensor.data_ptr<double>());
    return tensor;
  }
  static double furthest(const Tensor& a, const Tensor& b) { return a.sub(b).abs().max().item<double>(); }

  const nlohmann::json units_ = testing::golden_json("units.json");
};

TEST_F(GoldenOperators, RmsNorm) {
  const Tensor x = read("rms_norm", "x"), weight = read("rms_norm", "weight"), dy = read("rms_norm", "d_y");
  Tensor y = at::zeros_like(x), rstd = at::zeros({x.size(0)}, at::kDouble), dx = at::zeros_like(x);
  Tensor dweight = at::zeros_like(weight);
  kernels::rms_norm(x, weight, units_.at("rms_norm").at("eps"), y, rstd);
  kernels::rms_norm_backward_input(dy, x, weight, rstd, dx);
  kernels::rms_norm_backward_weight(dy, x, rstd, dweight);
  EXPECT_LT(furthest(y, read("rms_norm", "y")), 1e-14);
  EXPECT_LT(furthest(dx, read("rms_norm", "d_x")), 1e-14);
  EXPECT_LT(furthest(dweight, read("rms_norm", "d_weight")), 1e-14);
}

TEST_F(GoldenOperators, Rope) {
  const auto positions = units_.at("rope").at("positions").get<std::vector<int32_t>>();
  Tensor x = read("rope", "x"), dy = read("rope", "d_y");
  const auto table = kernels::rope_table(8, x.size(2), units_.at("rope").at("theta"), at::kDouble);
  kernels::rope(x, positions, table, false);
  kernels::rope(dy, positions, table, true);
  EXPECT_LT(furthest(x, read("rope", "y")), 1e-14);
  EXPECT_LT(furthest(dy, read("rope", "d_x")), 1e-14);
}

TEST_F(GoldenOperators, Swiglu) {
  const Tensor h = at::cat({read("swiglu", "gate"), read("swiglu", "up")}, 1);
  Tensor out = at::zeros_like(read("swiglu", "y"));
  kernels::swiglu(h, Tensor(), out);
  EXPECT_LT(furthest(out, read("swiglu", "y")), 1e-14);
  kernels::SwigluGradients gradients{at::zeros_like(h), Tensor(), at::zeros_like(out)};
  kernels::swiglu_backward(read("swiglu", "d_y"), h, Tensor(), gradients);
  const Tensor expected = at::cat({read("swiglu", "d_gate"), read("swiglu", "d_up")}, 1);
  EXPECT_LT(furthest(gradients.dh_N2F, expected), 1e-14);
}

TEST_F(GoldenOperators, CrossEntropy) {
  Tensor logits = read("cross_entropy_sum", "logits");
  const auto targets = units_.at("cross_entropy_sum").at("targets").get<std::vector<int32_t>>();
  const std::vector<float> mask(targets.size(), 1.0f);
  Tensor losses = at::zeros({logits.size(0)}, at::kDouble);
  kernels::cross_entropy_rows(logits, targets, mask, true, losses);
  EXPECT_LT(furthest(losses.sum(), read("cross_entropy_sum", "y")), 1e-13);
  const double dy = read("cross_entropy_sum", "d_y").item<double>();
  EXPECT_LT(furthest(logits.mul(dy), read("cross_entropy_sum", "d_logits")), 1e-14);
}

}  // namespace
}  // namespace conclave
