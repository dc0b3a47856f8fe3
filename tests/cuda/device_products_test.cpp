// SPDX-License-Identifier: Apache-2.0
// Products that a device computes through ATen, with what is ours around them: the grouped ones over experts, those
// with an fp32 result of bf16 factors, and the copy of a batch.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <numeric>

#include "cuda/device_runs.h"
#include "kernels/grouped_products.h"
#include "kernels/placement.h"
#include "nn/device_batch.h"
#include "nn/linear.h"
#include "support/tiny_models.h"

namespace conclave::kernels {
namespace {

struct DeviceProductsTest : DeviceTest {};

struct Groups {
  std::string name;
  std::vector<int32_t> rows;  // of each expert
  int64_t tail = 0;           // rows of nobody after them
  int64_t in = 32, out = 24;

  int64_t experts() const { return std::ssize(rows); }
  int64_t all() const { return std::accumulate(rows.begin(), rows.end(), tail); }
  Tensor ends() const {
    std::vector<int32_t> ends(rows.size());
    std::partial_sum(rows.begin(), rows.end(), ends.begin());
    return index_tensor(ends);
  }
};

std::vector<Groups> groups() {
  std::vector<int32_t> many(512);
  for (size_t e = 0; e < many.size(); ++e) many[e] = static_cast<int32_t>(e % 7 == 0 ? 3 : e % 3 == 0 ? 0 : 1);
  std::vector<Groups> all = {{"odd numbers of rows", {3, 17, 1, 5}},
                             {"experts without rows", {0, 7, 0, 0, 9, 0}},
                             {"rows of nobody", {5, 0, 6}, 9},
                             {"no row of an expert", {0, 0, 0, 0}, 13},
                             {"one expert", {37}},
                             {"one row", {0, 1, 0}},
                             {"no rows at all", {0, 0}, 0},
                             {"512 experts", many, 5, 16, 8},
                             {"widths that no tile divides", {31, 2, 65}, 1, 40, 72}};
  return all;
}

// Experts' weights with something between them, as in a flat buffer.
Tensor apart(const Tensor& flat, int64_t experts, int64_t out, int64_t in) {
  return flat.as_strided({experts, out, in}, {out * in + 16, in, 1});
}
Tensor flat_weights(const Groups& g, at::ScalarType dtype, uint64_t seed) {
  return random_tensor({g.experts() * (g.out * g.in + 16)}, dtype, seed);
}

// Calls body(expert, first row, rows), for experts that have rows.
template <typename Body>
void for_experts(const Groups& g, const Body& body) {
  int64_t begin = 0;
  for (int64_t e = 0; e < g.experts(); begin += g.rows[e++])
    if (g.rows[e] > 0) body(e, begin, g.rows[e]);
}

int64_t reads_of_a_product(const Tensor& rows) { return rows.is_cpu() || has_grouped_product(rows) ? 0 : 1; }

TEST_F(DeviceProductsTest, OfRowsWithTheirExpertsWeights) {
  for (const auto dtype : kDeviceTypes) {
    for (const Groups& g : groups()) {
      SCOPED_TRACE(g.name);
      // Rows of nobody are read by nobody.
      Tensor x = random_tensor({g.all(), g.in}, dtype, 1), dy = random_tensor({g.all(), g.out}, dtype, 2);
      for (const Tensor& rows : {x, dy}) rows.narrow(0, g.all() - g.tail, g.tail).fill_(NAN);
      const Tensor flat = flat_weights(g, dtype, 3), w64 = apart(flat, g.experts(), g.out, g.in).to(at::kDouble);
      const auto results = run_on_device([&] {
        HostReads reads;
        const Tensor ends = to_device(g.ends()), flat_ = to_device(flat), x_ = to_device(x), dy_ = to_device(dy);
        const Tensor w = apart(flat_, g.experts(), g.out, g.in);
        Tensor y = at::full({g.all(), g.out}, NAN, x_.options()), dx = at::full({g.all(), g.in}, NAN, x_.options());
        const bool waits = reads_of_a_product(x_) > 0;
        const std::unique_ptr<NoWaits> none = waits ? nullptr : std::make_unique<NoWaits>();
        grouped_forward(x_, w, {ends, reads}, y);
        grouped_backward_input(dy_, w, {ends, reads}, dx);
        EXPECT_EQ(reads.count(), g.all() == 0 ? 0 : 2 * reads_of_a_product(x_));
        return std::vector<Tensor>{y, dx};
      });
      Tensor y = at::zeros({g.all(), g.out}, at::kDouble), dx = at::zeros({g.all(), g.in}, at::kDouble);
      for_experts(g, [&](int64_t e, int64_t begin, int64_t count) {
        const auto own = [&](const Tensor& rows) { return rows.narrow(0, begin, count); };
        own(y).copy_(at::mm(own(x).to(at::kDouble), w64[e].t()));
        own(dx).copy_(at::mm(own(dy).to(at::kDouble), w64[e]));
      });
      expect_rounded(results[0], y, "y", 4);
      expect_rounded(results[1], dx, "dx", 4);
    }
  }
}

TEST_F(DeviceProductsTest, OfTheWeightGradientsAddInFloat) {
  for (const auto dtype : kDeviceTypes) {
    for (const Groups& g : groups()) {
      SCOPED_TRACE(g.name);
      Tensor x = random_tensor({g.all(), g.in}, dtype, 1), dy = random_tensor({g.all(), g.out}, dtype, 2);
      for (const Tensor& rows : {x, dy}) rows.narrow(0, g.all() - g.tail, g.tail).fill_(NAN);
      const Tensor before = flat_weights(g, at::kFloat, 3);
      const auto sums = [&](bool fresh) {
        return run_on_device([&] {
          HostReads reads;
          const Tensor flat = to_device(before), ends = to_device(g.ends());
          Tensor dw = apart(flat, g.experts(), g.out, g.in);
          grouped_backward_weight(to_device(dy), to_device(x), {ends, reads}, fresh, dw);
          return std::vector<Tensor>{flat};
        })[0];
      };
      Tensor expected = before.to(at::kDouble);
      const Tensor view = apart(expected, g.experts(), g.out, g.in);
      view.zero_();
      for_experts(g, [&](int64_t e, int64_t begin, int64_t count) {
        view[e].copy_(
            at::mm(dy.narrow(0, begin, count).to(at::kDouble).t(), x.narrow(0, begin, count).to(at::kDouble)));
      });
      const Tensor fresh = sums(true), added = sums(false);
      // One kernel's products of bf16 are rounded to bf16 before they are added.
      if (dtype == at::kFloat) expect_rounded(fresh, expected, "fresh", 4);
      const Tensor bound = expected.abs() * 0x1p-8 + 1e-5 * expected.abs().max();
      EXPECT_TRUE(((fresh.to(at::kDouble) - expected).abs() <= bound).all().item<bool>()) << "fresh";
      const Tensor own = apart(fresh, g.experts(), g.out, g.in), more = apart(added, g.experts(), g.out, g.in);
      expect_same_bits(more, apart(before, g.experts(), g.out, g.in) + own, "added");
    }
  }
}

TEST_F(DeviceProductsTest, OfLinearMapsKeepWeightGradientsInFloat) {
  for (const auto& [rows, in, out] : {std::array<int64_t, 3>{1, 8, 8}, {7, 24, 40}, {129, 64, 16}, {33, 32, 6}}) {
    SCOPED_TRACE(rows);
    const Tensor x = random_tensor({rows, in}, at::kBFloat16, 1), dy = random_tensor({rows, out}, at::kBFloat16, 2);
    const Tensor before = random_tensor({out, in}, at::kFloat, 3);
    const auto results = run_on_device([&] {
      const Tensor x_ = to_device(x), dy_ = to_device(dy), fresh = to_device(before), added = to_device(before);
      const NoWaits none;
      nn::linear_backward_weight(dy_, x_, true, fresh);
      nn::linear_backward_weight(dy_, x_, false, added);
      return std::vector<Tensor>{fresh, added};
    });
    const Tensor product = at::mm(dy.to(at::kDouble).t(), x.to(at::kDouble));
    EXPECT_EQ(results[0].scalar_type(), at::kFloat);
    expect_rounded(results[0], product, "fresh", 4);
    expect_rounded(results[1], product + before.to(at::kDouble), "added", 4);
  }
}

TEST_F(DeviceProductsTest, ABatchArrivesWhole) {
  Batch batch = testing::random_batch(3, 5, 23, 1);
  batch.segment_ids[14] = -1, batch.loss_mask[14] = 0, batch.loss_mask[2] = 0;
  const auto results = run_on_device([&] {
    const NoWaits none;
    const auto copy = nn::copy_batch(batch, test_device(), 23, 5);
    EXPECT_EQ(copy.tokens_B, (std::vector<int64_t>{5, 5, 4}));
    EXPECT_EQ(copy.targets_B, (std::vector<double>{4, 5, 4}));
    return std::vector<Tensor>{copy.tokens_T,       copy.targets_T,   copy.positions_T,
                               copy.segment_ids_BS, copy.loss_mask_T, copy.counts_2B};
  });
  const std::vector<std::vector<int32_t>> rows{batch.tokens, batch.targets, batch.position_ids, batch.segment_ids};
  for (size_t i = 0; i < rows.size(); ++i)
    expect_same_bits(results[i].reshape({-1}), index_tensor(rows[i]), "row " + std::to_string(i));
  EXPECT_TRUE(std::equal(batch.loss_mask.begin(), batch.loss_mask.end(), elements<float>(results[4]).begin()));
  const auto counts = elements<double>(results[5]);
  EXPECT_EQ(std::vector<double>(counts.begin(), counts.end()), (std::vector<double>{5, 5, 4, 4, 5, 4}));
}

// The guard of the other tests.
TEST_F(DeviceProductsTest, AHiddenLookIsFoundOnAGpu) {
  if (test_device().is_cpu()) GTEST_SKIP() << "nothing waits on the CPU";
  const Tensor one = to_device(at::full({1}, 1.0, at::kFloat));
  HostReads reads;
  const NoWaits none;
  EXPECT_THROW(one.item<float>(), c10::Error);
  EXPECT_EQ(elements<float>(reads.read(one))[0], 1.0f) << "the one door is open";
}

}  // namespace
}  // namespace conclave::kernels
