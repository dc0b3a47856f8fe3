// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_terms.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <vector>

#include "kernels/arguments.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"

namespace conclave::kernels {
namespace {

constexpr int64_t kGrain = 64;  // rows

}  // namespace

void add_scaled_rows(const Tensor& x_TD, const Tensor& scale_T, Tensor& y_TD) {
  check_tensors("add_scaled_rows", {{x_TD, "x_TD"}, {scale_T, "scale_T"}, {y_TD, "y_TD"}});
  check_dimensions("add_scaled_rows", {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), D = x_TD.size(1);
  check_sizes("add_scaled_rows", {scale_T, "scale_T"}, {rows});
  check_sizes("add_scaled_rows", {y_TD, "y_TD"}, {rows, D});
  with_type(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto x = elements<T>(x_TD), scale = elements<T>(scale_T), y = elements<T>(y_TD);
    at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t d = 0; d < D; ++d) y[t * D + d] += scale[t] * x[t * D + d];
    });
  });
}

Tensor scaled_rows(const Tensor& x_TD, const Tensor& scale_T) {
  Tensor y = at::zeros_like(x_TD);
  add_scaled_rows(x_TD, scale_T, y);
  return y;
}

Tensor row_products(const Tensor& a_TD, const Tensor& b_TD) {
  check_tensors("row_products", {{a_TD, "a_TD"}, {b_TD, "b_TD"}});
  check_dimensions("row_products", {a_TD, "a_TD"}, 2);
  const int64_t rows = a_TD.size(0), D = a_TD.size(1);
  check_sizes("row_products", {b_TD, "b_TD"}, {rows, D});
  Tensor products = at::empty({rows}, a_TD.options());
  with_type(a_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto a = elements<T>(a_TD), b = elements<T>(b_TD), out = elements<T>(products);
    at::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        T sum = 0;
        for (int64_t d = 0; d < D; ++d) sum += a[t * D + d] * b[t * D + d];
        out[t] = sum;
      }
    });
  });
  return products;
}

void add_combinations(const Tensor& w_TN, const Tensor& v_ND, Tensor& y_TD) {
  check_tensors("add_combinations", {{w_TN, "w_TN"}, {v_ND, "v_ND"}, {y_TD, "y_TD"}});
  check_dimensions("add_combinations", {y_TD, "y_TD"}, 2);
  check_dimensions("add_combinations", {v_ND, "v_ND"}, 2);
  const int64_t rows = y_TD.size(0), D = y_TD.size(1), N = v_ND.size(0);
  check_sizes("add_combinations", {w_TN, "w_TN"}, {rows, N});
  check_sizes("add_combinations", {v_ND, "v_ND"}, {N, D});
  with_type(y_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto w = elements<T>(w_TN), v = elements<T>(v_ND), y = elements<T>(y_TD);
    for_rows(rows, N * D, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t n = 0; n < N; ++n)
          for (int64_t d = 0; d < D; ++d) y[t * D + d] += w[t * N + n] * v[n * D + d];
    });
  });
}

Tensor vector_products(const Tensor& x_TD, const Tensor& v_ND) {
  check_tensors("vector_products", {{x_TD, "x_TD"}, {v_ND, "v_ND"}});
  check_dimensions("vector_products", {x_TD, "x_TD"}, 2);
  check_dimensions("vector_products", {v_ND, "v_ND"}, 2);
  const int64_t rows = x_TD.size(0), D = x_TD.size(1), N = v_ND.size(0);
  check_sizes("vector_products", {v_ND, "v_ND"}, {N, D});
  Tensor products = at::empty({rows, N}, x_TD.options());
  with_type(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto x = elements<T>(x_TD), v = elements<T>(v_ND), out = elements<T>(products);
    const auto dot = loops<T>().dot;
    for_rows(rows, N * D, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t n = 0; n < N; ++n) out[t * N + n] = dot(&x[t * D], &v[n * D], D);
    });
  });
  return products;
}

void add_weighted_rows(const Tensor& w_TN, const Tensor& x_TD, Tensor& sums_ND) {
  check_tensors("add_weighted_rows", {{w_TN, "w_TN"}, {x_TD, "x_TD"}, {sums_ND, "sums_ND"}});
  check_dimensions("add_weighted_rows", {x_TD, "x_TD"}, 2);
  check_dimensions("add_weighted_rows", {sums_ND, "sums_ND"}, 2);
  const int64_t rows = x_TD.size(0), D = x_TD.size(1), N = sums_ND.size(0);
  check_sizes("add_weighted_rows", {w_TN, "w_TN"}, {rows, N});
  check_sizes("add_weighted_rows", {sums_ND, "sums_ND"}, {N, D});
  with_type(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto w = elements<T>(w_TN), x = elements<T>(x_TD), out = elements<T>(sums_ND);
    for_column_blocks(D, rows * N, [&](int64_t begin, int64_t end) {
      std::vector<double> sum(end - begin);
      for (int64_t n = 0; n < N; ++n) {
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t t = 0; t < rows; ++t)
          for (int64_t d = begin; d < end; ++d) sum[d - begin] += static_cast<double>(w[t * N + n]) * x[t * D + d];
        for (int64_t d = begin; d < end; ++d) out[n * D + d] += static_cast<T>(sum[d - begin]);
      }
    });
  });
}

}  // namespace conclave::kernels
