// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"

#include <ATen/ops/empty.h>

#include <cmath>

#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {

RopeTable rope_table(int64_t positions, int64_t head_dim, double theta, at::ScalarType dtype) {
  check(positions >= 0 && head_dim >= 2 && head_dim % 2 == 0, "rope_table: head_dim must be even and at least 2");
  check(dtype == at::kFloat || dtype == at::kDouble, "rope_table: dtype must be Float or Double");
  const int64_t half = head_dim / 2;
  RopeTable table{at::empty({positions, half}, dtype), at::empty({positions, half}, dtype)};
  with_type(table.cos_PH, [&](auto zero) {
    using T = decltype(zero);
    T* cos = table.cos_PH.mutable_data_ptr<T>();
    T* sin = table.sin_PH.mutable_data_ptr<T>();
    for (int64_t i = 0; i < half; ++i) {
      const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      for (int64_t p = 0; p < positions; ++p) {
        cos[p * half + i] = static_cast<T>(std::cos(static_cast<double>(p) * frequency));
        sin[p * half + i] = static_cast<T>(std::sin(static_cast<double>(p) * frequency));
      }
    }
  });
  return table;
}

void rope(Tensor& x_TND, std::span<const int32_t> position_ids, const RopeTable& table, bool inverse) {
  if (is_bf16(x_TND)) return rounded(x_TND, [&](Tensor& x) { rope(x, position_ids, table, inverse); });
  const char* name = "rope";
  check_tensors(name, {{x_TND, "x_TND"}, {table.cos_PH, "cos_PH"}, {table.sin_PH, "sin_PH"}});
  check_dimensions(name, {x_TND, "x_TND"}, 3);
  check_dimensions(name, {table.cos_PH, "cos_PH"}, 2);
  const int64_t tokens = x_TND.size(0), heads = x_TND.size(1), half = x_TND.size(2) / 2;
  const int64_t positions = table.cos_PH.size(0);
  check_sizes(name, {x_TND, "x_TND"}, {tokens, heads, 2 * half});
  check_sizes(name, {table.cos_PH, "cos_PH"}, {positions, half});
  check_sizes(name, {table.sin_PH, "sin_PH"}, {positions, half});
  check_count(name, "position_ids", static_cast<int64_t>(position_ids.size()), tokens);
  for (const int32_t position : position_ids) check_index(name, "position_ids", position, positions);
  with_type(x_TND, [&](auto zero) {
    using T = decltype(zero);
    const auto rotate = inverse ? loops<T>().rotate_back : loops<T>().rotate;
    const T* cos = table.cos_PH.const_data_ptr<T>();
    const T* sin = table.sin_PH.const_data_ptr<T>();
    T* x = x_TND.mutable_data_ptr<T>();
    for_rows(tokens, heads * half * 2, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * heads; row < end * heads; ++row) {
        const int64_t angle = position_ids[row / heads] * half;
        rotate(x + row * 2 * half, x + row * 2 * half + half, cos + angle, sin + angle, half);
      }
    });
  });
}

void rope(Tensor& x_TND, const Tensor& position_ids_T, const RopeTable& table, bool inverse) {
  if (on_device(x_TND)) return rope_on_device(x_TND, position_ids_T, table, inverse);
  rope(x_TND, elements<int32_t>(position_ids_T), table, inverse);
}

}  // namespace conclave::kernels
