// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_terms.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

struct Case {
  int64_t rows, width, vectors;
};
constexpr Case kCases[] = {{0, 8, 3}, {1, 1, 1}, {1, 17, 512}, {67, 33, 7}, {300, 129, 64}};

Tensor in_double(const Tensor& tensor) { return tensor.to(at::kDouble); }

void for_all(const std::function<void(const Case&, at::ScalarType, const std::string&)>& body) {
  for (const auto dtype : kBothTypes)
    for (const Case& c : kCases) body(c, dtype, std::to_string(c.rows) + " rows of " + std::to_string(c.width));
}

TEST(RowTerms, AddTheirVectorsAsAProductOfMatricesDoes) {
  for_all([](const Case& c, at::ScalarType dtype, const std::string& what) {
    const Tensor w = random_tensor({c.rows, c.vectors}, dtype, 1), v = random_tensor({c.vectors, c.width}, dtype, 2);
    Tensor y = random_tensor({c.rows, c.width}, dtype, 3);
    const Tensor expected = in_double(y) + at::mm(in_double(w), in_double(v));
    add_combinations(w, v, y);
    expect_close(y, expected, what);
  });
}

TEST(RowTerms, MultiplyEveryRowWithEveryVector) {
  for_all([](const Case& c, at::ScalarType dtype, const std::string& what) {
    const Tensor x = random_tensor({c.rows, c.width}, dtype, 4), v = random_tensor({c.vectors, c.width}, dtype, 5);
    expect_close(vector_products(x, v), at::mm(in_double(x), in_double(v).t()), what);
  });
}

TEST(RowTerms, SumWeightedRowsOntoWhatIsThere) {
  for_all([](const Case& c, at::ScalarType dtype, const std::string& what) {
    const Tensor w = random_tensor({c.rows, c.vectors}, dtype, 6), x = random_tensor({c.rows, c.width}, dtype, 7);
    Tensor sums = random_tensor({c.vectors, c.width}, dtype, 8);
    const Tensor expected = in_double(sums) + at::mm(in_double(w).t(), in_double(x));
    add_weighted_rows(w, x, sums);
    expect_close(sums, expected, what);
  });
}

TEST(RowTerms, AreTheSameOnAnyNumberOfThreads) {
  const Tensor x = random_tensor({300, 129}, at::kFloat, 9), v = random_tensor({64, 129}, at::kFloat, 10);
  const Tensor w = random_tensor({300, 64}, at::kFloat, 11);
  expect_threads_do_not_show([&] {
    Tensor y = at::zeros_like(x), sums = at::zeros_like(v);
    add_combinations(w, v, y);
    add_weighted_rows(w, x, sums);
    return std::vector<Tensor>{y, sums, vector_products(x, v)};
  });
}

TEST(RowTerms, OfARowDependOnThatRowAlone) {
  const Tensor x = random_tensor({67, 33}, at::kFloat, 12), v = random_tensor({7, 33}, at::kFloat, 13);
  const Tensor w = random_tensor({67, 7}, at::kFloat, 14);
  expect_other_rows_do_not_show(67, [&](int64_t first, int64_t count) {
    Tensor y = at::zeros_like(x.narrow(0, first, count));
    add_combinations(w.narrow(0, first, count), v, y);
    return std::vector<Tensor>{y, vector_products(x.narrow(0, first, count), v)};
  });
}

}  // namespace
}  // namespace conclave::kernels
