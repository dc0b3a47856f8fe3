// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatchers/row_format.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>

namespace conclave::moe {
namespace {

constexpr double kLargestE4m3 = 448;
constexpr int64_t kScaleBytes = sizeof(float);

// Views of what lies in `bytes`: rows of n numbers after a scale each.
struct Fp8Rows {
  Tensor scale_N1, numbers_ND;
};

Fp8Rows fp8_rows(const Tensor& bytes, int64_t rows, int64_t n) {
  auto* place = static_cast<std::byte*>(bytes.data_ptr());
  const int64_t row = kScaleBytes + n;
  return {at::from_blob(place, {rows, kScaleBytes}, {row, 1}, at::kByte),
          at::from_blob(place + kScaleBytes, {rows, n}, {row, 1}, at::kFloat8_e4m3fn)};
}

Tensor numbers_of(const Tensor& bytes, const Tensor& rows_ND, at::ScalarType type) {
  return at::from_blob(bytes.data_ptr(), {rows_ND.size(0), rows_ND.size(1)}, type);
}

}  // namespace

int64_t row_bytes(const Tensor& rows_ND, DispatchPayload payload) {
  const int64_t n = rows_ND.size(1);
  switch (payload) {
    case DispatchPayload::kSame:
      return n * static_cast<int64_t>(rows_ND.element_size());
    case DispatchPayload::kBf16:
      return n * static_cast<int64_t>(sizeof(at::BFloat16));
    case DispatchPayload::kFp8:
      return kScaleBytes + n;
  }
  return 0;
}

void pack_rows(const Tensor& rows_ND, const Tensor& bytes, DispatchPayload payload) {
  if (rows_ND.numel() == 0) return;
  if (payload != DispatchPayload::kFp8) {
    const auto type = payload == DispatchPayload::kBf16 ? at::kBFloat16 : rows_ND.scalar_type();
    numbers_of(bytes, rows_ND, type).copy_(rows_ND);
    return;
  }
  const Fp8Rows to = fp8_rows(bytes, rows_ND.size(0), rows_ND.size(1));
  const Tensor largest = (rows_ND.abs().amax({1}, /*keepdim=*/true) / kLargestE4m3).to(at::kFloat);
  // A row of zeros, or of numbers so small that their scale is none.
  const Tensor scale = at::where(largest.eq(0), at::ones_like(largest), largest).contiguous();
  to.scale_N1.copy_(at::from_blob(scale.data_ptr(), {rows_ND.size(0), kScaleBytes}, at::kByte));
  to.numbers_ND.copy_((rows_ND / scale).clamp(-kLargestE4m3, kLargestE4m3));
}

void unpack_rows(const Tensor& bytes, const Tensor& rows_ND, DispatchPayload payload) {
  if (rows_ND.numel() == 0) return;
  if (payload != DispatchPayload::kFp8) {
    const auto type = payload == DispatchPayload::kBf16 ? at::kBFloat16 : rows_ND.scalar_type();
    rows_ND.copy_(numbers_of(bytes, rows_ND, type));
    return;
  }
  const Fp8Rows from = fp8_rows(bytes, rows_ND.size(0), rows_ND.size(1));
  const Tensor scale = from.scale_N1.contiguous();  // whose floats lie where floats may
  const Tensor factor = at::from_blob(scale.data_ptr(), {rows_ND.size(0), 1}, at::kFloat);
  rows_ND.copy_(from.numbers_ND.to(at::kFloat) * factor);
}

}  // namespace conclave::moe
