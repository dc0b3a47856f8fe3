// SPDX-License-Identifier: Apache-2.0
// The loops themselves: included inside an unnamed namespace of every loops_*.cpp after `kVectorBytes`. The same rules
// as in loops_math.inl: no header, no fused multiply-add, nothing that depends on the width of a register.

#include "kernels/loops_math.inl"

// Elements worked on at a time where a loop needs its results once more: they are then still in the nearest cache.
constexpr int64_t kChunk = 1024;

constexpr int64_t chunk_end(int64_t begin, int64_t n) { return begin + kChunk < n ? begin + kChunk : n; }

template <typename T>
void exp_loop(const T* __restrict x, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = exp_of(x[i]);
}

template <typename T>
void sigmoid_loop(const T* __restrict x, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = sigmoid_of(x[i]);
}

template <typename T>
void add(T* __restrict y, const T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

template <typename T>
double sum_of_squares(const T* __restrict x, int64_t n) {
  double sum = 0;
  double square[kChunk];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = chunk_end(begin, n) - begin;
    for (int64_t i = 0; i < count; ++i) {
      const double value = x[begin + i];
      square[i] = value * value;
    }
    sum += sum_of<double>(square, count);
  }
  return sum;
}

template <typename T>
bool all_finite(const T* __restrict x, int64_t n) {
  using R = Real<T>;
  typename R::Bits bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    bad |= (__builtin_bit_cast(typename R::Bits, x[i]) & R::kExponentMask) == R::kExponentMask ? 1 : 0;
  }
  return bad == 0;
}

template <typename T>
T square_root(T x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return __builtin_sqrtf(x);
  } else {
    return __builtin_sqrt(x);
  }
}

template <typename T>
T rms_norm(const T* __restrict x, const T* __restrict weight, T eps, T* __restrict y, int64_t n) {
  const T rstd = 1 / square_root(dot(x, x, n) / static_cast<T>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = weight[i] * (x[i] * rstd);
  return rstd;
}

template <typename T>
void rms_norm_backward_input(const T* __restrict dy, const T* __restrict x, const T* __restrict weight, T rstd,
                             T* __restrict dx, int64_t n) {
  const T product = lane_sum<T>(
      n, [](auto g, auto w, auto v) { return g * w * v; }, dy, weight, x);
  const T back = product * rstd * rstd / static_cast<T>(n);
  for (int64_t i = 0; i < n; ++i) dx[i] += rstd * (dy[i] * weight[i] - x[i] * back);
}

template <typename T>
void rms_norm_backward_weight(const T* __restrict dy, const T* __restrict x, T rstd, T* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += dy[i] * (x[i] * rstd);
}

template <typename T>
void rotate(T* __restrict first, T* __restrict second, const T* __restrict cos, const T* __restrict sin, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T a = first[i], b = second[i];
    first[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

template <typename T>
void rotate_back(T* __restrict first, T* __restrict second, const T* __restrict cos, const T* __restrict sin,
                 int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T a = first[i], b = second[i];
    first[i] = a * cos[i] + b * sin[i];
    second[i] = b * cos[i] - a * sin[i];
  }
}

template <typename T>
void swiglu(const T* __restrict gate, const T* __restrict up, T scale, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = scale * (gate[i] * sigmoid_of(gate[i]) * up[i]);
}

template <typename T>
T swiglu_backward(const T* __restrict dout, const T* gate, const T* up, T scale, T* dgate, T* dup, T* __restrict out,
                  int64_t n) {
  T dscale = 0;
  T new_dgate[kChunk], new_dup[kChunk], activation[kChunk];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = chunk_end(begin, n) - begin;
    for (int64_t i = 0; i < count; ++i) {
      const T g = gate[begin + i], u = up[begin + i];
      const T d = dout[begin + i] * scale;
      const T s = sigmoid_of(g);
      const T silu = g * s;
      activation[i] = silu * u;
      new_dgate[i] = d * u * (s * (1 + g * (1 - s)));
      new_dup[i] = d * silu;
    }
    dscale += dot(dout + begin, static_cast<const T*>(activation), count);
    for (int64_t i = 0; i < count; ++i) out[begin + i] = scale * activation[i];
    __builtin_memcpy(dgate + begin, new_dgate, count * sizeof(T));
    __builtin_memcpy(dup + begin, new_dup, count * sizeof(T));
  }
  return dscale;
}

template <typename T>
T log_of(T x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return __builtin_logf(x);
  } else {
    return __builtin_log(x);
  }
}

// exp(x - max) into y, chunk by chunk; returns the sum. `put(begin)` says where a chunk's results go.
template <typename T, typename Put>
T exp_sum(const T* x, T max, int64_t n, Put put) {
  T sum = 0;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = chunk_end(begin, n) - begin;
    T* y = put(begin);
    T shifted[kChunk];
    for (int64_t i = 0; i < count; ++i) shifted[i] = exp_of(x[begin + i] - max);
    sum += sum_of<T>(shifted, count);
    if (y != nullptr) __builtin_memcpy(y, shifted, count * sizeof(T));
  }
  return sum;
}

template <typename T>
T softmax_scaled(const T* x, T* y, T factor, int64_t n) {
  const T max = max_of(x, n);
  const T sum = exp_sum(x, max, n, [&](int64_t begin) { return y + begin; });
  const T scale = factor / sum;
  for (int64_t i = 0; i < n; ++i) y[i] *= scale;
  return max + log_of(sum);
}

template <typename T>
T softmax(const T* x, T* y, int64_t n) {
  return softmax_scaled<T>(x, y, 1, n);
}

template <typename T>
T softmax_in_place(T* x, T factor, int64_t n) {
  return softmax_scaled<T>(x, x, factor, n);
}

template <typename T>
T log_sum_exp(const T* x, int64_t n) {
  const T max = max_of(x, n);
  return max + log_of(exp_sum(x, max, n, [](int64_t) { return static_cast<T*>(nullptr); }));
}

template <typename T>
void adamw(T* __restrict p, T* __restrict m, T* __restrict v, const T* __restrict g, const AdamWFactors& factors,
           int64_t n) {
  const T decay = static_cast<T>(factors.decay), one_minus_beta1 = static_cast<T>(factors.one_minus_beta1);
  const T beta2 = static_cast<T>(factors.beta2), one_minus_beta2 = static_cast<T>(factors.one_minus_beta2);
  const T step_size = static_cast<T>(factors.step_size), root = static_cast<T>(factors.root_correction);
  const T eps = static_cast<T>(factors.eps), grad_scale = static_cast<T>(factors.grad_scale);
  for (int64_t i = 0; i < n; ++i) {
    const T gradient = g[i] * grad_scale;
    m[i] += one_minus_beta1 * (gradient - m[i]);
    v[i] = beta2 * v[i] + one_minus_beta2 * gradient * gradient;
    p[i] = decay * p[i] - step_size * (m[i] / (square_root(v[i]) / root + eps));
  }
}

template <typename T>
constexpr Loops<T> table() {
  return {exp_loop<T>,
          sigmoid_loop<T>,
          add<T>,
          dot<T>,
          sum_of_squares<T>,
          all_finite<T>,
          rms_norm<T>,
          rms_norm_backward_input<T>,
          rms_norm_backward_weight<T>,
          rotate<T>,
          rotate_back<T>,
          swiglu<T>,
          swiglu_backward<T>,
          softmax<T>,
          log_sum_exp<T>,
          softmax_in_place<T>,
          adamw<T>};
}
