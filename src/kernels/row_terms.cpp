// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_terms.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/arguments.h"

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

}  // namespace conclave::kernels
