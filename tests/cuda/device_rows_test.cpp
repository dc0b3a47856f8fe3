// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/zeros.h>

#include <array>

#include "core/error.h"
#include "cuda/device_runs.h"
#include "kernels/embedding.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/swiglu.h"

// References: the CPU's kernels, in double.
namespace conclave::kernels {
namespace {

class DeviceRowsTest : public DeviceTest {};

// Odd ones, one row, no rows; widths that are and are not a multiple of 16 bytes, below and above a block's threads.
const std::vector<std::array<int64_t, 2>> kSizes = {{0, 8}, {1, 1}, {1, 4096}, {3, 64}, {33, 65}, {130, 72}, {2, 2050}};

Tensor exact(const Tensor& tensor) { return tensor.to(at::kDouble); }

TEST_F(DeviceRowsTest, RmsNormForwardAndBackward) {
  for (const auto dtype : kDeviceTypes) {
    for (const auto& [rows, n] : kSizes) {
      const Tensor x = random_tensor({rows, n}, dtype, 1), w = random_tensor({n}, dtype, 2);
      const Tensor dy = random_tensor({rows, n}, dtype, 3), dx = random_tensor({rows, n}, dtype, 4);
      const Tensor dw = random_tensor({n}, at::kFloat, 5);
      const auto results = run_on_device([&] {
        const Tensor x_ = to_device(x), w_ = to_device(w), dy_ = to_device(dy);
        Tensor y = at::empty_like(x_), dx_ = to_device(dx), dw_ = to_device(dw);
        Tensor rstd = at::empty({rows}, dw_.options());
        rms_norm(x_, w_, 1e-5, y, rstd);
        rms_norm_backward_input(dy_, x_, w_, rstd, dx_);
        rms_norm_backward_weight(dy_, x_, rstd, dw_);
        return std::vector<Tensor>{y, rstd, dx_, dw_};
      });
      Tensor y = at::empty({rows, n}, at::kDouble), rstd = at::empty({rows}, at::kDouble);
      Tensor dx64 = exact(dx), dw64 = exact(dw);
      rms_norm(exact(x), exact(w), 1e-5, y, rstd);
      rms_norm_backward_input(exact(dy), exact(x), exact(w), rstd, dx64);
      rms_norm_backward_weight(exact(dy), exact(x), rstd, dw64);
      expect_rounded(results[0], y, "y");
      expect_rounded(results[1], rstd, "rstd");
      expect_rounded(results[2], dx64, "dx");
      expect_rounded(results[3], dw64, "dweight", 4);
    }
  }
}

TEST_F(DeviceRowsTest, SwigluForwardAndBackward) {
  for (const auto dtype : kDeviceTypes) {
    for (const auto& [rows, n] : kSizes) {
      for (const bool scaled : {false, true}) {
        const Tensor h = random_tensor({rows, 2 * n}, dtype, 1) * 3, dout = random_tensor({rows, n}, dtype, 2);
        const Tensor scale = random_tensor({rows}, at::kFloat, 3);
        const auto results = run_on_device([&] {
          const Tensor h_ = to_device(h), dout_ = to_device(dout), scale_ = scaled ? to_device(scale) : Tensor();
          Tensor out = at::empty_like(dout_);
          swiglu(h_, scale_, out);
          Tensor over = to_device(h);  // its gradient takes its place
          SwigluGradients g{over, scaled ? at::empty_like(scale_) : Tensor(), at::empty_like(dout_)};
          swiglu_backward(dout_, over, scale_, g);
          return std::vector<Tensor>{out, g.dh_N2F, g.out_NF, scaled ? g.dscale_N : out};
        });
        const Tensor scale64 = scaled ? exact(scale) : Tensor();
        Tensor out = at::empty({rows, n}, at::kDouble);
        swiglu(exact(h), scale64, out);
        SwigluGradients g{at::empty({rows, 2 * n}, at::kDouble), at::empty({rows}, at::kDouble), at::empty_like(out)};
        swiglu_backward(exact(dout), exact(h), scale64, g);
        expect_rounded(results[0], out, "out");
        expect_rounded(results[1], g.dh_N2F, "dh");
        expect_same_bits(results[2], results[0], "the activations again");
        if (scaled) expect_rounded(results[3], g.dscale_N, "dscale", 4);
      }
    }
  }
}

TEST_F(DeviceRowsTest, RopeAndItsInverse) {
  for (const auto dtype : kDeviceTypes) {
    for (const auto& [tokens, half] : {std::array<int64_t, 2>{0, 4}, {1, 1}, {5, 3}, {9, 32}, {3, 64}}) {
      const Tensor x = random_tensor({tokens, 3, 2 * half}, dtype, 1);
      const Tensor positions = index_tensor(random_indices(tokens, 0, 50, 2));
      const RopeTable table = rope_table(50, 2 * half, 1e4, at::kFloat);
      const auto results = run_on_device([&] {
        Tensor turned = to_device(x), back = to_device(x);
        const RopeTable table_{to_device(table.cos_PH), to_device(table.sin_PH)};
        rope(turned, to_device(positions), table_, false);
        rope(back, to_device(positions), table_, true);
        return std::vector<Tensor>{turned, back};
      });
      const RopeTable table64{exact(table.cos_PH), exact(table.sin_PH)};
      Tensor turned = exact(x), back = exact(x);
      rope(turned, positions, table64, false);
      rope(back, positions, table64, true);
      expect_rounded(results[0], turned, "turned");
      expect_rounded(results[1], back, "back");
    }
  }
}

TEST_F(DeviceRowsTest, RopeAtAnUnknownPositionIsNan) {
  const Tensor x = random_tensor({3, 2, 8}, at::kFloat, 1), positions = index_tensor({4, 5, -1});
  const auto results = run_on_device([&] {
    const RopeTable table = rope_table(5, 8, 1e4, at::kFloat);
    Tensor turned = to_device(x);
    rope(turned, to_device(positions), {to_device(table.cos_PH), to_device(table.sin_PH)}, false);
    return std::vector<Tensor>{turned};
  });
  const Tensor nan = at::isnan(results[0]).view({3, 16}).sum(1);
  EXPECT_EQ(nan[0].item<int64_t>(), 0);
  EXPECT_EQ(nan[1].item<int64_t>(), 16);
  EXPECT_EQ(nan[2].item<int64_t>(), 16);
}

TEST_F(DeviceRowsTest, GatherCopiesBitsZeroesPaddingAndMarksUnknownRows) {
  for (const auto dtype : kDeviceTypes) {
    for (const int64_t n : {1, 7, 64, 1000}) {
      for (const int64_t count : {0, 1, 50}) {
        const Tensor src = random_tensor({11, n}, dtype, 1), rows = index_tensor(random_indices(count, -3, 13, 2));
        const auto results = run_on_device([&] {
          Tensor dst = at::empty({count, n}, to_device(src).options());
          gather_rows(to_device(src), to_device(rows), dst);
          return std::vector<Tensor>{dst};
        });
        for (int64_t i = 0; i < count; ++i) {
          const auto row = rows.const_data_ptr<int32_t>()[i];
          if (row >= 11) {
            EXPECT_EQ(at::isnan(results[0][i]).sum().item<int64_t>(), n);
          } else {
            expect_same_bits(results[0][i], row < 0 ? at::zeros({n}, dtype) : src[row], "row");
          }
        }
      }
    }
  }
}

TEST_F(DeviceRowsTest, EmbeddingGradientAddsEqualTokensInOrder) {
  for (const auto dtype : kDeviceTypes) {
    for (const int64_t n : {1, 40, 300}) {
      for (const int64_t count : {0, 1, 3, 200}) {
        // Few tokens, many repeats, some padding; a token at the end of the table.
        const auto tokens = random_indices(count, -2, 9, 3);
        const Tensor dy = random_tensor({count, n}, dtype, 1), before = random_tensor({9, n}, at::kFloat, 2);
        const auto results = run_on_device([&] {
          Tensor dw = to_device(before);
          embedding_backward(to_device(dy), to_device(index_tensor(tokens)), dw);
          return std::vector<Tensor>{dw};
        });
        Tensor expected = before.clone();
        embedding_backward(dy.to(at::kFloat), tokens, expected);
        expect_same_bits(results[0], expected, "the CPU adds in the same order");
      }
    }
  }
}

TEST_F(DeviceRowsTest, BiasesColumnSumsAndAccumulation) {
  for (const auto dtype : kDeviceTypes) {
    for (const auto& [rows, n] : kSizes) {
      const Tensor y = random_tensor({rows, n}, dtype, 1), b = random_tensor({n}, dtype, 2);
      const Tensor total = random_tensor({rows, n}, at::kFloat, 3), db = random_tensor({n}, at::kFloat, 4);
      const auto results = run_on_device([&] {
        Tensor biased = to_device(y), sum = to_device(total), db_ = to_device(db), twice = to_device(y);
        add_bias(biased, to_device(b));
        add(sum, to_device(y));  // fp32 += the rows' type
        add(twice, to_device(y));
        sum_columns(to_device(y), db_);
        return std::vector<Tensor>{biased, sum, twice, db_};
      });
      expect_rounded(results[0], exact(y) + exact(b), "bias");
      expect_same_bits(results[1], total + y.to(at::kFloat), "accumulation");
      expect_same_bits(results[2], (y.to(at::kFloat) + y.to(at::kFloat)).to(dtype), "add");
      expect_rounded(results[3], exact(db) + exact(y).sum(0), "column sums", 4);
    }
  }
}

TEST_F(DeviceRowsTest, RefusesTensorsOfOtherTypesAndSizes) {
  run_on_device([] {
    const Tensor x = to_device(random_tensor({2, 8}, at::kBFloat16, 1));
    const Tensor w = to_device(random_tensor({8}, at::kFloat, 1)),
                 narrow = to_device(random_tensor({7}, at::kBFloat16, 1));
    Tensor y = at::empty_like(x), rstd = at::empty({2}, w.options());
    EXPECT_THROW(rms_norm(x, w, 1e-5, y, rstd), BugError) << "the weight has the rows' type";
    EXPECT_THROW(rms_norm(x, narrow, 1e-5, y, rstd), BugError);
    EXPECT_THROW(swiglu(x, Tensor(), y), BugError) << "half as wide";
    EXPECT_THROW(gather_rows(x, to_device(at::arange(2, at::kLong)), y), BugError) << "int32 rows";
    return std::vector<Tensor>{};
  });
}

}  // namespace
}  // namespace conclave::kernels
