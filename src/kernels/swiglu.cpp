// SPDX-License-Identifier: Apache-2.0
#include "kernels/swiglu.h"

#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

// An element costs about this many plain element operations: exp and a division.
constexpr int64_t kWork = 8;

void check_pre_activations(const char* name, const Tensor& h_N2F, const Tensor& scale_N) {
  check_dimensions(name, {h_N2F, "h_N2F"}, 2);
  check(h_N2F.size(1) % 2 == 0, "swiglu: h_N2F must have an even number of columns, gate and up");
  if (!scale_N.defined()) return;
  check_tensors(name, {{h_N2F, "h_N2F"}, {scale_N, "scale_N"}});
  check_sizes(name, {scale_N, "scale_N"}, {h_N2F.size(0)});
}

}  // namespace

void swiglu(const Tensor& h_N2F, const Tensor& scale_N, Tensor& out_NF) {
  if (on_device(h_N2F)) return swiglu_on_device(h_N2F, scale_N, out_NF);
  if (is_bf16(h_N2F)) return rounded(out_NF, [&](Tensor& out) { swiglu(wide(h_N2F), scale_N, out); });
  const char* name = "swiglu";
  check_tensors(name, {{h_N2F, "h_N2F"}, {out_NF, "out_NF"}});
  check_pre_activations(name, h_N2F, scale_N);
  const int64_t rows = h_N2F.size(0), n = h_N2F.size(1) / 2;
  check_sizes(name, {out_NF, "out_NF"}, {rows, n});
  with_type(h_N2F, [&](auto zero) {
    using T = decltype(zero);
    const T* h = h_N2F.const_data_ptr<T>();
    const T* scale = scale_N.defined() ? scale_N.const_data_ptr<T>() : nullptr;
    T* out = out_NF.mutable_data_ptr<T>();
    for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* gate = h + i * 2 * n;
        loops<T>().swiglu(gate, gate + n, scale == nullptr ? T{1} : scale[i], out + i * n, n);
      }
    });
  });
}

void swiglu_backward(const Tensor& dout_NF, const Tensor& h_N2F, const Tensor& scale_N, SwigluGradients& gradients) {
  if (on_device(h_N2F)) return swiglu_backward_on_device(dout_NF, h_N2F, scale_N, gradients);
  if (is_bf16(h_N2F)) {
    SwigluGradients exact{wide(gradients.dh_N2F), gradients.dscale_N, wide(gradients.out_NF)};
    swiglu_backward(wide(dout_NF), wide(h_N2F), scale_N, exact);
    gradients.dh_N2F.copy_(exact.dh_N2F);
    gradients.out_NF.copy_(exact.out_NF);
    return;
  }
  const char* name = "swiglu_backward";
  auto& [dh_N2F, dscale_N, out_NF] = gradients;
  check_tensors(name, {{dout_NF, "dout_NF"}, {h_N2F, "h_N2F"}, {dh_N2F, "dh_N2F"}, {out_NF, "out_NF"}});
  check_pre_activations(name, h_N2F, scale_N);
  const int64_t rows = h_N2F.size(0), n = h_N2F.size(1) / 2;
  check_sizes(name, {dout_NF, "dout_NF"}, {rows, n});
  check_sizes(name, {dh_N2F, "dh_N2F"}, {rows, 2 * n});
  check_sizes(name, {out_NF, "out_NF"}, {rows, n});
  if (dscale_N.defined()) {
    check_tensors(name, {{h_N2F, "h_N2F"}, {dscale_N, "dscale_N"}});
    check_sizes(name, {dscale_N, "dscale_N"}, {rows});
  }
  with_type(h_N2F, [&](auto zero) {
    using T = decltype(zero);
    const T* dout = dout_NF.const_data_ptr<T>();
    const T* h = h_N2F.const_data_ptr<T>();
    const T* scale = scale_N.defined() ? scale_N.const_data_ptr<T>() : nullptr;
    T* dh = gradients.dh_N2F.mutable_data_ptr<T>();
    T* dscale = gradients.dscale_N.defined() ? gradients.dscale_N.mutable_data_ptr<T>() : nullptr;
    T* out = gradients.out_NF.mutable_data_ptr<T>();
    for_rows(rows, 2 * kWork * n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* gate = h + i * 2 * n;
        T* dgate = dh + i * 2 * n;
        const T factor = scale == nullptr ? T{1} : scale[i];
        const T d = loops<T>().swiglu_backward(dout + i * n, gate, gate + n, factor, dgate, dgate + n, out + i * n, n);
        if (dscale != nullptr) dscale[i] = d;
      }
    });
  });
}

}  // namespace conclave::kernels
