// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include "kernels/arguments.h"
#include "kernels/cuda/columns.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/swiglu.h"
#include "kernels/on_device.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

// Null for a tensor that is not there.
float* factors(const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr<float>() : nullptr; }

}  // namespace

void rms_norm_on_device(const Tensor& x_TD, const Tensor& weight_D, double eps, Tensor& y_TD, Tensor& rstd_T) {
  const char* name = "rms_norm";
  check_dimensions(name, {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), n = x_TD.size(1);
  check_beside(name, x_TD, x_TD.scalar_type(), {{x_TD, "x_TD"}, {weight_D, "weight_D"}, {y_TD, "y_TD"}});
  check_beside(name, x_TD, at::kFloat, {{rstd_T, "rstd_T"}});
  check_sizes(name, {weight_D, "weight_D"}, {n});
  check_sizes(name, {y_TD, "y_TD"}, {rows, n});
  check_sizes(name, {rstd_T, "rstd_T"}, {rows});
  cuda::rms_norm({real_of(x_TD), rows, n, static_cast<float>(eps), x_TD.const_data_ptr(), weight_D.const_data_ptr(),
                  y_TD.mutable_data_ptr(), rstd_T.mutable_data_ptr<float>()},
                 stream_of(x_TD));
}

void rms_norm_backward_input_on_device(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& weight_D,
                                       const Tensor& rstd_T, Tensor& dx_TD) {
  const char* name = "rms_norm_backward_input";
  check_dimensions(name, {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), n = x_TD.size(1);
  check_beside(name, x_TD, x_TD.scalar_type(),
               {{x_TD, "x_TD"}, {dy_TD, "dy_TD"}, {weight_D, "weight_D"}, {dx_TD, "dx_TD"}});
  check_beside(name, x_TD, at::kFloat, {{rstd_T, "rstd_T"}});
  check_sizes(name, {dy_TD, "dy_TD"}, {rows, n});
  check_sizes(name, {weight_D, "weight_D"}, {n});
  check_sizes(name, {rstd_T, "rstd_T"}, {rows});
  check_sizes(name, {dx_TD, "dx_TD"}, {rows, n});
  cuda::rms_norm_backward_input({real_of(x_TD), rows, n, dy_TD.const_data_ptr(), x_TD.const_data_ptr(),
                                 weight_D.const_data_ptr(), rstd_T.const_data_ptr<float>(), dx_TD.mutable_data_ptr()},
                                stream_of(x_TD));
}

void rms_norm_backward_weight_on_device(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& rstd_T,
                                        Tensor& dweight_D) {
  const char* name = "rms_norm_backward_weight";
  check_dimensions(name, {x_TD, "x_TD"}, 2);
  const int64_t rows = x_TD.size(0), n = x_TD.size(1);
  check_beside(name, x_TD, x_TD.scalar_type(), {{x_TD, "x_TD"}, {dy_TD, "dy_TD"}});
  check_beside(name, x_TD, at::kFloat, {{rstd_T, "rstd_T"}, {dweight_D, "dweight_D"}});
  check_sizes(name, {dy_TD, "dy_TD"}, {rows, n});
  check_sizes(name, {rstd_T, "rstd_T"}, {rows});
  check_sizes(name, {dweight_D, "dweight_D"}, {n});
  Tensor partials = at::empty({cuda::column_partials(rows, n)}, dweight_D.options());
  cuda::sum_columns(
      {real_of(x_TD), rows, n, dy_TD.const_data_ptr(), x_TD.const_data_ptr(), rstd_T.const_data_ptr<float>(),
       dweight_D.mutable_data_ptr<float>(), partials.mutable_data_ptr<float>()},
      stream_of(x_TD));
}

void swiglu_on_device(const Tensor& h_N2F, const Tensor& scale_N, Tensor& out_NF) {
  const char* name = "swiglu";
  check_dimensions(name, {h_N2F, "h_N2F"}, 2);
  const int64_t rows = h_N2F.size(0), n = h_N2F.size(1) / 2;
  check_beside(name, h_N2F, h_N2F.scalar_type(), {{h_N2F, "h_N2F"}, {out_NF, "out_NF"}});
  check_sizes(name, {h_N2F, "h_N2F"}, {rows, 2 * n});
  check_sizes(name, {out_NF, "out_NF"}, {rows, n});
  if (scale_N.defined()) {
    check_beside(name, h_N2F, at::kFloat, {{scale_N, "scale_N"}});
    check_sizes(name, {scale_N, "scale_N"}, {rows});
  }
  cuda::swiglu({real_of(h_N2F), rows, n, h_N2F.const_data_ptr(), factors(scale_N), out_NF.mutable_data_ptr()},
               stream_of(h_N2F));
}

void swiglu_backward_on_device(const Tensor& dout_NF, const Tensor& h_N2F, const Tensor& scale_N,
                               SwigluGradients& gradients) {
  const char* name = "swiglu_backward";
  const auto& [dh_N2F, dscale_N, out_NF] = gradients;
  check_dimensions(name, {h_N2F, "h_N2F"}, 2);
  const int64_t rows = h_N2F.size(0), n = h_N2F.size(1) / 2;
  check_beside(name, h_N2F, h_N2F.scalar_type(),
               {{h_N2F, "h_N2F"}, {dout_NF, "dout_NF"}, {dh_N2F, "dh_N2F"}, {out_NF, "out_NF"}});
  check_sizes(name, {h_N2F, "h_N2F"}, {rows, 2 * n});
  check_sizes(name, {dh_N2F, "dh_N2F"}, {rows, 2 * n});
  check_sizes(name, {dout_NF, "dout_NF"}, {rows, n});
  check_sizes(name, {out_NF, "out_NF"}, {rows, n});
  for (const Argument& factor : {Argument{scale_N, "scale_N"}, Argument{dscale_N, "dscale_N"}}) {
    if (!factor.tensor.defined()) continue;
    check_beside(name, h_N2F, at::kFloat, {factor});
    check_sizes(name, factor, {rows});
  }
  cuda::swiglu_backward({real_of(h_N2F), rows, n, dout_NF.const_data_ptr(), h_N2F.const_data_ptr(), factors(scale_N),
                         dh_N2F.mutable_data_ptr(), factors(dscale_N), out_NF.mutable_data_ptr()},
                        stream_of(h_N2F));
}

void rope_on_device(Tensor& x_TND, const Tensor& position_ids_T, const RopeTable& table, bool inverse) {
  const char* name = "rope";
  check_dimensions(name, {x_TND, "x_TND"}, 3);
  const auto& [cos_PH, sin_PH] = table;
  check_dimensions(name, {cos_PH, "cos_PH"}, 2);
  const int64_t tokens = x_TND.size(0), heads = x_TND.size(1), half = x_TND.size(2) / 2, positions = cos_PH.size(0);
  check_beside(name, x_TND, x_TND.scalar_type(), {{x_TND, "x_TND"}});
  check_beside(name, x_TND, at::kFloat, {{cos_PH, "cos_PH"}, {sin_PH, "sin_PH"}});
  check_beside(name, x_TND, at::kInt, {{position_ids_T, "position_ids_T"}});
  check_sizes(name, {x_TND, "x_TND"}, {tokens, heads, 2 * half});
  check_sizes(name, {cos_PH, "cos_PH"}, {positions, half});
  check_sizes(name, {sin_PH, "sin_PH"}, {positions, half});
  check_count(name, "position_ids_T", position_ids_T.numel(), tokens);
  cuda::rope({real_of(x_TND), tokens, heads, half, positions, inverse, position_ids_T.const_data_ptr<int32_t>(),
              cos_PH.const_data_ptr<float>(), sin_PH.const_data_ptr<float>(), x_TND.mutable_data_ptr()},
             stream_of(x_TND));
}

void gather_rows_on_device(const Tensor& src_TD, const Tensor& rows_N, Tensor& dst_ND) {
  const char* name = "gather_rows";
  check_dimensions(name, {src_TD, "src_TD"}, 2);
  check_beside(name, src_TD, src_TD.scalar_type(), {{src_TD, "src_TD"}, {dst_ND, "dst_ND"}});
  check_beside(name, src_TD, at::kInt, {{rows_N, "rows_N"}});
  check_sizes(name, {dst_ND, "dst_ND"}, {rows_N.numel(), src_TD.size(1)});
  cuda::gather_rows({real_of(src_TD), src_TD.size(0), rows_N.numel(), src_TD.size(1), src_TD.const_data_ptr(),
                     rows_N.const_data_ptr<int32_t>(), dst_ND.mutable_data_ptr()},
                    stream_of(src_TD));
}

void embedding_backward_on_device(const Tensor& dy_TD, const Tensor& tokens_T, Tensor& dweight_VD) {
  const char* name = "embedding_backward";
  check_dimensions(name, {dweight_VD, "dweight_VD"}, 2);
  const int64_t vocabulary = dweight_VD.size(0), n = dweight_VD.size(1), count = tokens_T.numel();
  check_beside(name, dy_TD, dy_TD.scalar_type(), {{dy_TD, "dy_TD"}});
  check_beside(name, dy_TD, at::kFloat, {{dweight_VD, "dweight_VD"}});
  check_beside(name, dy_TD, at::kInt, {{tokens_T, "tokens_T"}});
  check_sizes(name, {dy_TD, "dy_TD"}, {count, n});
  // Stable: rows of one token are added in token order, as on the CPU.
  const auto [sorted, order] = at::sort(tokens_T.view({-1}), /*stable=*/true, /*dim=*/0, /*descending=*/false);
  cuda::embedding_backward(
      {real_of(dy_TD), count, vocabulary, n, dy_TD.const_data_ptr(), sorted.const_data_ptr<int32_t>(),
       order.const_data_ptr<int64_t>(), dweight_VD.mutable_data_ptr<float>()},
      stream_of(dy_TD));
}

void add_bias_on_device(Tensor& y_TO, const Tensor& bias_O) {
  check_dimensions("add_bias", {y_TO, "y_TO"}, 2);
  check_beside("add_bias", y_TO, y_TO.scalar_type(), {{y_TO, "y_TO"}, {bias_O, "bias_O"}});
  check_sizes("add_bias", {bias_O, "bias_O"}, {y_TO.size(1)});
  cuda::add_bias({real_of(y_TO), y_TO.size(0), y_TO.size(1), bias_O.const_data_ptr(), y_TO.mutable_data_ptr()},
                 stream_of(y_TO));
}

void sum_columns_on_device(const Tensor& dy_TO, Tensor& dbias_O) {
  const char* name = "sum_columns";
  check_dimensions(name, {dy_TO, "dy_TO"}, 2);
  const int64_t rows = dy_TO.size(0), n = dy_TO.size(1);
  check_beside(name, dy_TO, dy_TO.scalar_type(), {{dy_TO, "dy_TO"}});
  check_beside(name, dy_TO, at::kFloat, {{dbias_O, "dbias_O"}});
  check_sizes(name, {dbias_O, "dbias_O"}, {n});
  Tensor partials = at::empty({cuda::column_partials(rows, n)}, dbias_O.options());
  cuda::sum_columns({real_of(dy_TO), rows, n, dy_TO.const_data_ptr(), nullptr, nullptr,
                     dbias_O.mutable_data_ptr<float>(), partials.mutable_data_ptr<float>()},
                    stream_of(dy_TO));
}

void add_on_device(Tensor& y, const Tensor& x) {
  check_beside("add", y, y.scalar_type(), {{y, "y"}});
  check_beside("add", y, x.scalar_type(), {{x, "x"}});
  check_count("add", "x", x.numel(), y.numel());
  cuda::add({real_of(y), real_of(x), y.numel(), x.const_data_ptr(), y.mutable_data_ptr()}, stream_of(y));
}

}  // namespace conclave::kernels
