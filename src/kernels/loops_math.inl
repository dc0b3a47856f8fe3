// SPDX-License-Identifier: Apache-2.0
// What the loops are made of: exp, sigmoid, sums over lanes. Every loops_*.cpp includes it inside an unnamed namespace,
// after `kVectorBytes`, so that nothing in it is shared between files compiled for different instruction sets. It uses
// no header but <cstdint>: a library's inline function compiled for AVX-512 here could be the copy the linker keeps for
// everyone.
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
