// SPDX-License-Identifier: Apache-2.0
// The text of every loops_*.cpp: included inside an unnamed namespace after `kVectorBytes`, so that nothing in it is
// shared between files compiled for different instruction sets. It uses no header but <cstdint>: a library's inline
// function compiled for AVX-512 here could be the copy the linker keeps for everyone.
//
// Two rules make all variants equal bit for bit. Element-wise loops are plain scalar code without fused multiply-add:
// vector body, tail and other widths then round alike. Sums keep 256 bytes' worth of lanes, whatever the width of a
// register.

template <typename T>
struct Real;

template <>
struct Real<float> {
  using Bits = uint32_t;
  static constexpr int kFraction = 23;
  static constexpr Bits kBias = 127;
  static constexpr Bits kExponentMask = 0x7f800000u;
  static constexpr float kRound = 0x1.8p23f;                   // adding it leaves the nearest integer in the low bits
  static constexpr float kHighest = 89.0f, kLowest = -104.0f;  // beyond: infinity and zero
  static constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;  // High has 9 bits: exact times |n| <= 151
  static constexpr int kTerms = 7;
};

template <>
struct Real<double> {
  using Bits = uint64_t;
  static constexpr int kFraction = 52;
  static constexpr Bits kBias = 1023;
  static constexpr Bits kExponentMask = 0x7ff0000000000000ull;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kHighest = 710.0, kLowest = -746.0;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr int kTerms = 13;
};

template <typename T>
constexpr T one_over_factorial(int k) {
  double product = 1;
  for (int i = 2; i <= k; ++i) product *= i;
  return static_cast<T>(1 / product);
}

// 2^n, where `rounded` is n + kRound.
template <typename T>
T power_of_two(T rounded) {
  const auto bits = (__builtin_bit_cast(typename Real<T>::Bits, rounded) + Real<T>::kBias) << Real<T>::kFraction;
  return __builtin_bit_cast(T, bits);
}

// sum of r^i / (k + i)!, i = 0 ... terms - k.
template <typename T, int k>
T series(T r) {
  if constexpr (k == Real<T>::kTerms) {
    return one_over_factorial<T>(k);
  } else {
    return one_over_factorial<T>(k) + r * series<T, k + 1>(r);
  }
}

// exp(x) within 2 ulp, straight-line: x = n ln2 + r, Taylor's series in r, and 2^n in two factors so that results below
// the normal range are rounded once. NaN stays NaN, overflow is infinity.
template <typename T>
T exp_of(T x) {
  using R = Real<T>;
  x = x > R::kHighest ? R::kHighest : x;
  x = x < R::kLowest ? R::kLowest : x;
  const T n = (x * static_cast<T>(1.4426950408889634074) + R::kRound) - R::kRound;
  const T r = (x - n * R::kLn2High) - n * R::kLn2Low;
  const T value = 1 + (r + r * r * series<T, 2>(r));
  const T half = n * static_cast<T>(0.5) + R::kRound;
  const T rest = (n - (half - R::kRound)) + R::kRound;
  return value * power_of_two(half) * power_of_two(rest);
}

template <typename T>
T sigmoid_of(T x) {
  return 1 / (1 + exp_of(-x));
}

// The lanes of a sum or a maximum: lane i takes elements i, i + kLanes, ...
template <typename T>
struct Lanes {
  static constexpr int kLanes = 256 / sizeof(T);
  static constexpr int kWidth = kVectorBytes / sizeof(T);
  static constexpr int kVectors = kLanes / kWidth;
  typedef T Vector __attribute__((vector_size(kVectorBytes)));

  static Vector load(const T* p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
};

// Reads `fill` beyond the end: the last, incomplete block takes the same path as the others.
template <typename T>
struct Padded {
  T values[Lanes<T>::kLanes];

  Padded(const T* p, int64_t count, T fill) {
    for (int64_t i = 0; i < Lanes<T>::kLanes; ++i) values[i] = fill;
    for (int64_t i = 0; i < count; ++i) values[i] = p[i];
  }
};

template <typename T>
T sum_of_lanes(T (&lane)[Lanes<T>::kLanes]) {
  for (int h = Lanes<T>::kLanes / 2; h > 0; h /= 2) {
    for (int i = 0; i < h; ++i) lane[i] += lane[i + h];
  }
  return lane[0];
}

// sum of f(a, b, ...) over n elements; f takes one vector of each array and must give 0 for zeros.
template <typename T, typename F, typename... Arrays>
T lane_sum(int64_t n, F f, const Arrays*... arrays) {
  using L = Lanes<T>;
  typename L::Vector sum[L::kVectors] = {};
  int64_t i = 0;
  for (; i + L::kLanes <= n; i += L::kLanes) {
#pragma GCC unroll 16
    for (int v = 0; v < L::kVectors; ++v) sum[v] += f(L::load(arrays + i + v * L::kWidth)...);
  }
  if (i < n) {
    const auto last = [&](const auto&... padded) {
#pragma GCC unroll 16
      for (int v = 0; v < L::kVectors; ++v) sum[v] += f(L::load(padded.values + v * L::kWidth)...);
    };
    last(Padded<T>(arrays + i, n - i, 0)...);
  }
  T lane[L::kLanes];
  __builtin_memcpy(lane, sum, sizeof lane);
  return sum_of_lanes<T>(lane);
}

template <typename T>
T sum_of(const T* x, int64_t n) {
  return lane_sum<T>(
      n, [](auto a) { return a; }, x);
}

template <typename T>
T dot(const T* a, const T* b, int64_t n) {
  return lane_sum<T>(
      n, [](auto x, auto y) { return x * y; }, a, b);
}

// The greatest element that is not NaN, or -infinity.
template <typename T>
T max_of(const T* x, int64_t n) {
  using L = Lanes<T>;
  typename L::Vector best[L::kVectors];
  for (auto& b : best) b = typename L::Vector{} - static_cast<T>(__builtin_inf());
  int64_t i = 0;
  for (; i + L::kLanes <= n; i += L::kLanes) {
#pragma GCC unroll 16
    for (int v = 0; v < L::kVectors; ++v) {
      const auto y = L::load(x + i + v * L::kWidth);
      best[v] = y > best[v] ? y : best[v];
    }
  }
  T lane[L::kLanes];
  __builtin_memcpy(lane, best, sizeof lane);
  for (int l = 0; i < n; ++i, ++l) lane[l] = x[i] > lane[l] ? x[i] : lane[l];
  for (int h = L::kLanes / 2; h > 0; h /= 2) {
    for (int l = 0; l < h; ++l) lane[l] = lane[l + h] > lane[l] ? lane[l + h] : lane[l];
  }
  return lane[0];
}

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
