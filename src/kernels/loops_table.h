// SPDX-License-Identifier: Apache-2.0
// The innermost loops as tables of functions over raw pointers, one table per instruction set. All that the files
// compiled for a special instruction set include: it holds no code, so none of it can end up in the rest of the
// program.
#pragma once

#include <cstdint>

namespace conclave::kernels {

struct AdamWFactors {
  double decay, one_minus_beta1, beta2, one_minus_beta2, step_size, root_correction, eps, grad_scale;
};

// What to do with one row (or one range) of n elements. Pointers of one call do not overlap unless a line says so.
template <typename T>
struct Loops {
  void (*exp)(const T* x, T* y, int64_t n);
  void (*sigmoid)(const T* x, T* y, int64_t n);
  void (*add)(T* y, const T* x, int64_t n);  // y += x
  T (*dot)(const T* a, const T* b, int64_t n);
  double (*sum_of_squares)(const T* x, int64_t n);
  bool (*all_finite)(const T* x, int64_t n);

  T (*rms_norm)(const T* x, const T* weight, T eps, T* y, int64_t n);  // returns 1 / sqrt(mean + eps)
  void (*rms_norm_backward_input)(const T* dy, const T* x, const T* weight, T rstd, T* dx, int64_t n);  // dx +=
  void (*rms_norm_backward_weight)(const T* dy, const T* x, T rstd, T* sum, int64_t n);                 // sum +=

  void (*rotate)(T* first, T* second, const T* cos, const T* sin, int64_t n);
  void (*rotate_back)(T* first, T* second, const T* cos, const T* sin, int64_t n);

  void (*swiglu)(const T* gate, const T* up, T scale, T* out, int64_t n);
  // Returns dscale. `dgate` may be `gate`, `dup` may be `up`.
  T (*swiglu_backward)(const T* dout, const T* gate, const T* up, T scale, T* dgate, T* dup, T* out, int64_t n);

  T (*softmax)(const T* x, T* y, int64_t n);  // returns log(sum(exp(x)))
  T (*log_sum_exp)(const T* x, int64_t n);
  T (*softmax_in_place)(T* x, T factor, int64_t n);  // x becomes factor * softmax(x); returns log(sum(exp(x)))

  void (*adamw)(T* p, T* m, T* v, const T* g, const AdamWFactors& factors, int64_t n);
};

// The loops of one instruction set.
struct LoopSet {
  const char* name;
  Loops<float> fp32;
  Loops<double> fp64;
};

extern const LoopSet kGenericLoops;
extern const LoopSet kAvx2Loops;    // x86 only; runs where the CPU has AVX2
extern const LoopSet kAvx512Loops;  // x86 only; runs where the CPU has AVX-512 F, BW, DQ and VL

}  // namespace conclave::kernels
