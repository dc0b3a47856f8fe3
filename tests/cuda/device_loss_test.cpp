// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <cmath>

#include "cuda/device_runs.h"
#include "kernels/cross_entropy.h"
#include "kernels/softmax.h"

namespace conclave::kernels {
namespace {

class DeviceLossTest : public DeviceTest {};

const std::vector<std::array<int64_t, 2>> kSizes = {{0, 8}, {1, 1}, {1, 7}, {5, 64}, {3, 1001}, {2, 4096}, {1, 151936}};

struct Rows {
  Rows(int64_t rows, int64_t n, at::ScalarType dtype)
      : logits(random_tensor({rows, n}, dtype, 1) * 4),
        targets(index_tensor(random_indices(rows, 0, static_cast<int32_t>(n), 2))),
        mask(random_tensor({rows}, at::kFloat, 3).abs()) {
    if (rows > 2) mask[1] = 0;
  }
  Tensor logits, targets, mask;
};

TEST_F(DeviceLossTest, CrossEntropyAndItsGradient) {
  for (const auto dtype : kDeviceTypes) {
    for (const auto& [rows, n] : kSizes) {
      for (const bool gradient : {false, true}) {
        const Rows r(rows, n, dtype);
        const auto results = run_on_device([&] {
          Tensor logits = to_device(r.logits), loss = at::empty_like(to_device(r.mask));
          cross_entropy_rows(logits, to_device(r.targets), to_device(r.mask), gradient, loss);
          return std::vector<Tensor>{logits, loss};
        });
        Tensor logits = r.logits.to(at::kDouble), loss = at::empty({rows}, at::kDouble);
        cross_entropy_rows(logits, r.targets, r.mask, gradient, loss);
        expect_rounded(results[0], logits, "gradient");
        expect_rounded(results[1], loss, "loss");
        if (!gradient) expect_same_bits(results[0], r.logits, "logits are kept");
      }
    }
  }
}

TEST_F(DeviceLossTest, MaskedRowsAreZeroAndUnknownTargetsNan) {
  const Tensor logits = at::full({3, 40}, NAN, at::kFloat), targets = index_tensor({-7, 40, 99});
  const Tensor mask = at::zeros({3}, at::kFloat);
  mask[1] = 1;
  const auto results = run_on_device([&] {
    Tensor logits_ = to_device(logits), loss = at::empty_like(to_device(mask));
    logits_[1].zero_();
    cross_entropy_rows(logits_, to_device(targets), to_device(mask), true, loss);
    return std::vector<Tensor>{logits_, loss};
  });
  for (const int64_t row : {0, 2}) {
    expect_same_bits(results[0][row], at::zeros({40}, at::kFloat), "masked gradient");
    EXPECT_EQ(results[1][row].item<float>(), 0);
  }
  EXPECT_TRUE(std::isnan(results[1][1].item<float>())) << "target 40 of 40";
}

TEST_F(DeviceLossTest, InfiniteLogitsCountAsNothing) {
  Tensor logits = at::full({1, 300}, -INFINITY, at::kFloat);
  logits[0][299] = 2.0f;
  logits[0][7] = 2.0f;
  const auto results = run_on_device([&] {
    Tensor logits_ = to_device(logits), loss = at::empty({1}, logits_.options());
    cross_entropy_rows(logits_, to_device(index_tensor({7})), to_device(at::full({1}, 1, at::kFloat)), true, loss);
    return std::vector<Tensor>{logits_, loss};
  });
  EXPECT_NEAR(results[1].item<float>(), std::log(2.0), 1e-6);
  EXPECT_NEAR(results[0][0][7].item<float>(), -0.5, 1e-6);
  EXPECT_EQ(results[0][0][8].item<float>(), 0);
}

// The vocabulary in three parts of uneven width, finished as ranks do it.
TEST_F(DeviceLossTest, PartsOfTheVocabularyGiveTheWhole) {
  for (const auto dtype : kDeviceTypes) {
    const Rows r(6, 300, dtype);
    const std::vector<std::array<int64_t, 2>> parts = {{0, 8}, {8, 136}, {144, 156}};
    const auto results = run_on_device([&] {
      const Tensor targets = to_device(r.targets), mask = to_device(r.mask);
      std::vector<Tensor> logits, lse, found, out;
      for (const auto& [first, count] : parts) {
        logits.push_back(to_device(r.logits.narrow(1, first, count).contiguous()));
        lse.push_back(at::empty_like(mask));
        found.push_back(at::empty_like(mask));
        cross_entropy_part(logits.back(), DeviceVocabularyPart{targets, mask, first}, true, lse.back(), found.back());
      }
      const Tensor all = (lse[0].exp() + lse[1].exp() + lse[2].exp()).log();
      for (size_t i = 0; i < parts.size(); ++i) {
        Tensor loss = all - found[0] - found[1] - found[2];
        const Tensor share = (lse[i] - all).exp();
        finish_cross_entropy_part(logits[i], DeviceVocabularyPart{targets, mask, parts[i][0]}, true, share, loss);
        out.push_back(logits[i]);
        out.push_back(loss);
      }
      return out;
    });
    Tensor logits = r.logits.to(at::kDouble), loss = at::empty({6}, at::kDouble);
    cross_entropy_rows(logits, r.targets, r.mask, true, loss);
    for (size_t i = 0; i < parts.size(); ++i) {
      const Tensor expected = logits.narrow(1, parts[i][0], parts[i][1]);
      const Tensor difference = (results[2 * i].to(at::kDouble) - expected).abs();
      EXPECT_LT(difference.max().item<double>(),
                dtype == at::kFloat ? 4e-6 : 0x1p-7 * expected.abs().max().item<double>());
      expect_rounded(results[2 * i + 1], loss, "loss");
    }
  }
}

TEST_F(DeviceLossTest, Sigmoid) {
  for (const auto& [rows, n] : kSizes) {
    const Tensor logits = random_tensor({rows, n}, at::kFloat, 1) * 5;
    const auto results = run_on_device([&] {
      const Tensor logits_ = to_device(logits);
      Tensor scores = at::empty_like(logits_);
      sigmoid_rows(logits_, scores);
      return std::vector<Tensor>{scores};
    });
    const Tensor logits64 = logits.to(at::kDouble);
    Tensor scores = at::empty_like(logits64);
    sigmoid_rows(logits64, scores);
    expect_rounded(results[0], scores, "sigmoid");
  }
}

}  // namespace
}  // namespace conclave::kernels
