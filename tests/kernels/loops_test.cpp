// SPDX-License-Identifier: Apache-2.0
#include "kernels/loops.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/random.h"

namespace conclave::kernels {
namespace {

template <typename T>
const Loops<T>& loops_of(const LoopSet& set) {
  if constexpr (std::is_same_v<T, float>) {
    return set.fp32;
  } else {
    return set.fp64;
  }
}

template <typename T>
std::vector<T> values(int64_t n, uint64_t seed, double size = 2.0) {
  const Random random(seed, Purpose::kTest);
  std::vector<T> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<T>(size * random.normal(i));
  return x;
}

// Distance of two finite floats in units in the last place.
int64_t ulps(float a, float b) {
  const auto place = [](float x) {
    const auto bits = std::bit_cast<int32_t>(x);
    return bits < 0 ? int64_t{std::numeric_limits<int32_t>::min()} - bits : int64_t{bits};
  };
  return std::abs(place(a) - place(b));
}

TEST(LoopsTest, ExpIsWithinTwoUlpOverAllMagnitudes) {
  std::vector<float> x;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 1009) x.push_back(std::bit_cast<float>(uint32_t(bits)));
  for (float v = -110.0f; v < 95.0f; v += 0.000511f) x.push_back(v);
  for (const LoopSet* set : supported_loops()) {
    std::vector<float> y(x.size());
    set->fp32.exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
    int64_t worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto expected = static_cast<float>(std::exp(static_cast<double>(x[i])));
      if (std::isnan(x[i])) {
        ASSERT_TRUE(std::isnan(y[i]));
      } else if (std::isinf(expected) || std::isinf(y[i])) {
        ASSERT_EQ(y[i], expected) << "exp(" << x[i] << ")";
      } else {
        worst = std::max(worst, ulps(y[i], expected));
        ASSERT_LE(ulps(y[i], expected), 2) << set->name << ": exp(" << x[i] << ") = " << y[i];
      }
    }
    RecordProperty(std::string("worst_ulp_") + set->name, static_cast<int>(worst));
  }
}

TEST(LoopsTest, ExpInDoubleIsWithinTwoRoundings) {
  std::vector<double> x{0.0, -0.0, INFINITY, -INFINITY, 1e300, -1e300, 709.7827, 709.7828, -708.5, -745.2, 1e-300};
  for (double v = -750; v < 712; v += 0.0137) x.push_back(v);
  for (const LoopSet* set : supported_loops()) {
    std::vector<double> y(x.size());
    set->fp64.exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = std::exp(x[i]);
      if (std::isinf(expected)) {
        ASSERT_EQ(y[i], expected) << x[i];
      } else {
        ASSERT_NEAR(y[i], expected, std::max(5e-324, 2 * 2.3e-16 * expected)) << set->name << ": exp(" << x[i] << ")";
      }
    }
    double nan = NAN, result = 0;
    set->fp64.exp(&nan, &result, 1);
    EXPECT_TRUE(std::isnan(result));
  }
}

TEST(LoopsTest, SigmoidHasItsLimits) {
  const std::vector<float> x{-INFINITY, -200, -88, 0, 20, 200, INFINITY};
  for (const LoopSet* set : supported_loops()) {
    std::vector<float> y(x.size());
    set->fp32.sigmoid(x.data(), y.data(), 7);
    EXPECT_EQ(y[0], 0);
    EXPECT_EQ(y[1], 0);
    EXPECT_NEAR(y[2] / std::exp(-88.0), 1.0, 1e-6);
    EXPECT_EQ(y[3], 0.5f);
    EXPECT_EQ(y[5], 1);
    EXPECT_EQ(y[6], 1);
  }
}

// Everything every loop computes from n elements, in one list.
template <typename T>
std::vector<T> everything(const Loops<T>& loops, int64_t n) {
  const auto a = values<T>(n, 1), b = values<T>(n, 2), c = values<T>(n, 3);
  auto squares = values<T>(n, 4);
  for (T& v : squares) v *= v;
  std::vector<T> out;
  const auto keep = [&](const std::vector<T>& v) { out.insert(out.end(), v.begin(), v.end()); };
  auto y = a, z = b, w = c;
  loops.exp(a.data(), y.data(), n), keep(y);
  loops.sigmoid(a.data(), y.data(), n), keep(y);
  loops.add(y.data(), b.data(), n), keep(y);
  out.push_back(loops.dot(a.data(), b.data(), n));
  out.push_back(static_cast<T>(loops.sum_of_squares(a.data(), n)));
  out.push_back(loops.rms_norm(a.data(), b.data(), static_cast<T>(1e-5), y.data(), n)), keep(y);
  loops.rms_norm_backward_input(a.data(), b.data(), c.data(), static_cast<T>(0.7), y.data(), n), keep(y);
  loops.rms_norm_backward_weight(a.data(), b.data(), static_cast<T>(0.7), y.data(), n), keep(y);
  loops.rotate(y.data(), z.data(), a.data(), c.data(), n), keep(y), keep(z);
  loops.rotate_back(y.data(), z.data(), b.data(), c.data(), n), keep(y), keep(z);
  loops.swiglu(a.data(), b.data(), static_cast<T>(0.3), y.data(), n), keep(y);
  out.push_back(
      loops.swiglu_backward(c.data(), a.data(), b.data(), static_cast<T>(0.3), y.data(), z.data(), w.data(), n));
  keep(y), keep(z), keep(w);
  out.push_back(loops.softmax(a.data(), y.data(), n)), keep(y);
  out.push_back(loops.log_sum_exp(b.data(), n));
  y = c;
  out.push_back(loops.softmax_in_place(y.data(), static_cast<T>(0.25), n)), keep(y);
  y = a, z = b, w = squares;
  loops.adamw(y.data(), z.data(), w.data(), c.data(), {0.99, 0.1, 0.95, 0.05, 0.01, 0.9, 1e-8, 0.5}, n);
  keep(y), keep(z), keep(w);
  return out;
}

template <typename T>
void expect_instruction_sets_agree() {
  for (const int64_t n : {1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 200, 1023, 1024, 1025, 3001}) {
    const auto expected = everything(loops_of<T>(kGenericLoops), n);
    for (const LoopSet* set : supported_loops()) {
      const auto actual = everything(loops_of<T>(*set), n);
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t i = 0; i < actual.size(); ++i) {
        ASSERT_EQ(std::memcmp(&actual[i], &expected[i], sizeof(T)), 0)
            << set->name << ", n = " << n << ", value " << i << ": " << actual[i] << " and " << expected[i];
      }
    }
  }
}

TEST(LoopsTest, EveryInstructionSetGivesTheSameBits) {
  expect_instruction_sets_agree<float>();
  expect_instruction_sets_agree<double>();
}

// The trap that ATen's own sigmoid and silu fall into: an element in the tail rounds differently from one in the body.
template <typename T>
void expect_position_does_not_show() {
  const auto x = values<T>(300, 5, 6.0);
  for (const LoopSet* set : supported_loops()) {
    const Loops<T>& loops = loops_of<T>(*set);
    std::vector<T> all(300), one(1), gated(300), single(1);
    loops.sigmoid(x.data(), all.data(), 300);
    loops.swiglu(x.data(), x.data(), static_cast<T>(0.7), gated.data(), 300);
    for (int64_t i = 0; i < 300; ++i) {
      loops.sigmoid(x.data() + i, one.data(), 1);
      loops.swiglu(x.data() + i, x.data() + i, static_cast<T>(0.7), single.data(), 1);
      ASSERT_EQ(std::memcmp(&all[i], one.data(), sizeof(T)), 0) << set->name << " sigmoid " << i;
      ASSERT_EQ(std::memcmp(&gated[i], single.data(), sizeof(T)), 0) << set->name << " swiglu " << i;
    }
  }
}

TEST(LoopsTest, TailElementsHaveTheBitsOfTheBody) {
  expect_position_does_not_show<float>();
  expect_position_does_not_show<double>();
}

TEST(LoopsTest, AllFiniteSeesEveryPlaceAndKind) {
  for (const LoopSet* set : supported_loops()) {
    auto x = values<float>(131, 1);
    EXPECT_TRUE(set->fp32.all_finite(x.data(), 131));
    for (size_t i = 0; i < x.size(); ++i) {
      const float before = x[i];
      for (const float bad : {NAN, INFINITY, -INFINITY, -NAN}) {
        x[i] = bad;
        EXPECT_FALSE(set->fp32.all_finite(x.data(), 131)) << set->name << " " << i;
      }
      x[i] = before;
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
