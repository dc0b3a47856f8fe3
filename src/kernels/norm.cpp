// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm.h"

#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {

void rms_norm(const Tensor& x_TD, const Tensor& weight_D, double eps, Tensor& y_TD, Tensor& rstd_T) {
  if (on_device(x_TD)) return rms_norm_on_device(x_TD, weight_D, eps, y_TD, rstd_T);
  if (is_bf16(x_TD)) return rounded(y_TD, [&](Tensor& y) { rms_norm(wide(x_TD), wide(weight_D), eps, y, rstd_T); });
  const char* name = "rms_norm";
  check_tensors(name, {{x_TD, "x_TD"}, {weight_D, "weight_D"}, {y_TD, "y_TD"}, {rstd_T, "rstd_T"}});
  check_dimensions(name, {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), n = x_TD.size(1);
  check_sizes(name, {weight_D, "weight_D"}, {n});
  check_sizes(name, {y_TD, "y_TD"}, {rows, n});
  check_sizes(name, {rstd_T, "rstd_T"}, {rows});
  with_type(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto norm = loops<T>().rms_norm;
    const T* x = x_TD.const_data_ptr<T>();
    const T* weight = weight_D.const_data_ptr<T>();
    T* y = y_TD.mutable_data_ptr<T>();
    T* rstd = rstd_T.mutable_data_ptr<T>();
    for_rows(rows, n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) rstd[t] = norm(x + t * n, weight, static_cast<T>(eps), y + t * n, n);
    });
  });
}

void rms_norm_backward_input(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& weight_D, const Tensor& rstd_T,
                             Tensor& dx_TD) {
  if (on_device(x_TD)) return rms_norm_backward_input_on_device(dy_TD, x_TD, weight_D, rstd_T, dx_TD);
  if (is_bf16(x_TD))
    return rounded(dx_TD,
                   [&](Tensor& dx) { rms_norm_backward_input(wide(dy_TD), wide(x_TD), wide(weight_D), rstd_T, dx); });
  const char* name = "rms_norm_backward_input";
  check_tensors(name, {{dy_TD, "dy_TD"}, {x_TD, "x_TD"}, {weight_D, "weight_D"}, {rstd_T, "rstd_T"}, {dx_TD, "dx_TD"}});
  check_dimensions(name, {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), n = x_TD.size(1);
  check_sizes(name, {dy_TD, "dy_TD"}, {rows, n});
  check_sizes(name, {weight_D, "weight_D"}, {n});
  check_sizes(name, {rstd_T, "rstd_T"}, {rows});
  check_sizes(name, {dx_TD, "dx_TD"}, {rows, n});
  with_type(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto backward = loops<T>().rms_norm_backward_input;
    const T* dy = dy_TD.const_data_ptr<T>();
    const T* x = x_TD.const_data_ptr<T>();
    const T* weight = weight_D.const_data_ptr<T>();
    const T* rstd = rstd_T.const_data_ptr<T>();
    T* dx = dx_TD.mutable_data_ptr<T>();
    for_rows(rows, 2 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) backward(dy + t * n, x + t * n, weight, rstd[t], dx + t * n, n);
    });
  });
}

void rms_norm_backward_weight(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& rstd_T, Tensor& dweight_D) {
  if (on_device(x_TD)) return rms_norm_backward_weight_on_device(dy_TD, x_TD, rstd_T, dweight_D);
  if (is_bf16(x_TD)) return rms_norm_backward_weight(wide(dy_TD), wide(x_TD), rstd_T, dweight_D);
  const char* name = "rms_norm_backward_weight";
  check_tensors(name, {{dy_TD, "dy_TD"}, {x_TD, "x_TD"}, {rstd_T, "rstd_T"}, {dweight_D, "dweight_D"}});
  check_dimensions(name, {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), n = x_TD.size(1);
  check_sizes(name, {dy_TD, "dy_TD"}, {rows, n});
  check_sizes(name, {rstd_T, "rstd_T"}, {rows});
  check_sizes(name, {dweight_D, "dweight_D"}, {n});
  with_type(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const T* dy = dy_TD.const_data_ptr<T>();
    const T* x = x_TD.const_data_ptr<T>();
    const T* rstd = rstd_T.const_data_ptr<T>();
    T* dweight = dweight_D.mutable_data_ptr<T>();
    for_column_blocks(n, rows, [&](int64_t begin, int64_t end) {
      for (int64_t block = 0; block < rows; block += kRowBlock) {
        T sum[kColumnBlock] = {};
        for (int64_t t = block; t < std::min(rows, block + kRowBlock); ++t) {
          loops<T>().rms_norm_backward_weight(dy + t * n + begin, x + t * n + begin, rstd[t], sum, end - begin);
        }
        for (int64_t c = begin; c < end; ++c) dweight[c] += sum[c - begin];
      }
    });
  });
}

}  // namespace conclave::kernels
