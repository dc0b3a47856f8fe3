// SPDX-License-Identifier: Apache-2.0
// Rows as bytes (moe/dispatchers/row_format.h) against E4M3 by its definition: sign, four bits of exponent with bias 7,
// three of mantissa, no infinity, 0x7f not a number.
#include "moe/dispatchers/row_format.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/tensor_checks.h"

namespace conclave::moe {
namespace {

constexpr auto kFp8 = DispatchPayload::kFp8;
constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

double value_of(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 128) != 0 ? -magnitude : magnitude;
}

// The nearest number of E4M3, the even code of two, the largest for what is larger.
double nearest(double x) {
  int best = 0;
  for (int code = 1; code < 127; ++code) {
    const double closer = std::abs(value_of(best) - std::abs(x)) - std::abs(value_of(code) - std::abs(x));
    if (closer > 0 || (closer == 0 && code % 2 == 0)) best = code;
  }
  return std::copysign(value_of(best), x);
}

Tensor rows_of(const std::vector<float>& numbers, int64_t width) { return at::tensor(numbers).view({-1, width}); }

Tensor packed(const Tensor& rows, DispatchPayload payload) {
  Tensor bytes = at::empty({rows.size(0) * row_bytes(rows, payload)}, at::kByte);
  pack_rows(rows, bytes, payload);
  return bytes;
}

Tensor there_and_back(const Tensor& rows, DispatchPayload payload) {
  Tensor back = at::empty_like(rows);
  unpack_rows(packed(rows, payload), back, payload);
  return back;
}

TEST(RowFormat, TakesAQuarterOfTheBytesAndAScaleForEachRow) {
  const Tensor rows = at::empty({3, 10}, at::kFloat);
  EXPECT_EQ(row_bytes(rows, DispatchPayload::kSame), 40);
  EXPECT_EQ(row_bytes(rows, DispatchPayload::kBf16), 20);
  EXPECT_EQ(row_bytes(rows, kFp8), 14);
}

TEST(RowFormat, IsE4m3AfterTheScaleInBytes) {
  // The largest is 448, so the scale is 1: sign, exponent and mantissa of what follows can be read off.
  const Tensor bytes = packed(rows_of({448, -1, 1.125f, 0, 0.001953125f}, 5), kFp8);
  const auto codes = elements<uint8_t>(bytes);
  float scale = 0;
  std::memcpy(&scale, codes.data(), sizeof scale);
  EXPECT_EQ(scale, 1.0f);
  EXPECT_EQ(std::vector<uint8_t>(codes.begin() + 4, codes.end()), (std::vector<uint8_t>{0x7e, 0xb8, 0x39, 0x00, 0x01}));
}

TEST(RowFormat, RoundsToNearestEvenAtEveryBoundary) {
  std::vector<float> numbers{448};
  for (int code = 0; code < 126; ++code) {
    const double middle = (value_of(code) + value_of(code + 1)) / 2;
    for (const double x : {value_of(code), middle, middle * (1 - 1e-6), middle * (1 + 1e-6)})
      for (const int sign : {1, -1}) numbers.push_back(static_cast<float>(sign * x));
  }
  const Tensor got = there_and_back(rows_of(numbers, std::ssize(numbers)), kFp8);
  for (size_t i = 0; i < numbers.size(); ++i)
    EXPECT_EQ(got[0][static_cast<int64_t>(i)].item<double>(), nearest(numbers[i])) << numbers[i];
}

TEST(RowFormat, KeepsTheLargestOfARowWhateverItIs) {
  for (const float largest : {3.0f, 1e-30f, 7e33f, 1.0f / 3, 449.0f, 6e4f}) {
    const Tensor rows = rows_of({largest / 3, -largest, largest / 1000, 0}, 4);
    const Tensor got = there_and_back(rows, kFp8);
    EXPECT_NEAR(got[0][1].item<float>() / -largest, 1, 2e-7) << "no overflow of what the scale rounds up";
    EXPECT_NEAR(got[0][0].item<float>() / (largest / 3), 1, 1.0 / 16);
    EXPECT_NEAR(got[0][2].item<float>() / (largest / 1000), 1, 1.0 / 16);
    EXPECT_EQ(got[0][3].item<float>(), 0);
  }
}

TEST(RowFormat, OfZerosOrOfNumbersBeyondAnyScaleIsZeros) {
  const Tensor got = there_and_back(rows_of({0, 0, 0, -0.0f, 1e-44f, -1e-45f}, 3), kFp8);
  EXPECT_EQ(got.abs().max().item<float>(), 0);
}

// A scale that is the least number there is stands for up to one and a half of it.
TEST(RowFormat, SaturatesWhereAScaleIsTooCoarse) {
  const float least = std::numeric_limits<float>::denorm_min();
  const Tensor got = there_and_back(rows_of({448 * 1.4f * least, -448 * 1.4f * least, 0}, 3), kFp8);
  EXPECT_EQ(got[0][0].item<float>(), 448 * least);
  EXPECT_EQ(got[0][1].item<float>(), -448 * least);
}

TEST(RowFormat, WhatIsNotFiniteSpoilsItsRowAndNoOther) {
  const Tensor got = there_and_back(rows_of({1, 2, kInf, 3, 4, 5, 6, kNan, 7, -kInf, 8, 9, 1, 1, 1}, 3), kFp8);
  for (const int64_t row : {0, 2, 3})
    for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(got[row][i].item<float>())) << row << " " << i;
  for (const int64_t row : {1, 4})
    for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isfinite(got[row][i].item<float>())) << row << " " << i;
}

TEST(RowFormat, OfARowDependsOnThatRowAlone) {
  const Tensor rows = kernels::random_tensor({23, 17}, at::kFloat, 1);
  for (const auto payload : {DispatchPayload::kBf16, kFp8})
    kernels::expect_other_rows_do_not_show(23, [&](int64_t first, int64_t count) {
      return std::vector<Tensor>{there_and_back(rows.narrow(0, first, count), payload)};
    });
}

TEST(RowFormat, HasNoRowsToo) {
  for (const auto payload : {DispatchPayload::kSame, DispatchPayload::kBf16, kFp8})
    EXPECT_EQ(there_and_back(at::empty({0, 5}, at::kFloat), payload).size(0), 0);
}

}  // namespace
}  // namespace conclave::moe
