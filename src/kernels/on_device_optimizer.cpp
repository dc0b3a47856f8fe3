// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>

#include "kernels/arguments.h"
#include "kernels/cuda/optimizer.h"
#include "kernels/on_device.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

static_assert(cuda::kSlice == kNormSlice);

Tensor empty_beside(const Tensor& x, int64_t count, at::ScalarType dtype) {
  return at::empty({count}, x.options().dtype(dtype));
}

}  // namespace

Tensor slice_sums_of_squares_on_device(const Tensor& x) {
  check_beside("slice_sums_of_squares", x, at::kFloat, {{x, "x"}});
  Tensor sums_S = empty_beside(x, cuda::slices_of(x.numel()), at::kDouble);
  cuda::slice_sums_of_squares(x.const_data_ptr<float>(), x.numel(), sums_S.mutable_data_ptr<double>(), stream_of(x));
  return sums_S;
}

Tensor sum_of_squares_on_device(const Tensor& x) {
  Tensor sums_S = slice_sums_of_squares_on_device(x), total_1 = empty_beside(x, 1, at::kDouble);
  cuda::tree_sum(sums_S.mutable_data_ptr<double>(), sums_S.numel(), total_1.mutable_data_ptr<double>(), stream_of(x));
  return total_1;
}

Tensor first_non_finite_on_device(const Tensor& x) {
  check_beside("first_non_finite", x, at::kFloat, {{x, "x"}});
  Tensor found_S = empty_beside(x, cuda::slices_of(x.numel()), at::kLong), index_1 = empty_beside(x, 1, at::kLong);
  cuda::first_non_finite(x.const_data_ptr<float>(), x.numel(), found_S.mutable_data_ptr<int64_t>(),
                         index_1.mutable_data_ptr<int64_t>(), stream_of(x));
  return index_1;
}

void adamw_on_device(const AdamWBuffers& buffers, const Tensor& blocks, const AdamWFactors& factors) {
  const auto& [parameters, m, v, gradients, copy, factor_1] = buffers;
  cuda::AdamW a{};
  a.factors = factors;
  a.gradient_factor = factor_1.defined() ? factor_1.const_data_ptr<double>() : nullptr;
  a.blocks = static_cast<const cuda::AdamWBlock*>(blocks.const_data_ptr());
  a.block_count = blocks.size(0);
  a.parameters = parameters.mutable_data_ptr<float>();
  a.m = m.mutable_data_ptr<float>();
  a.v = v.mutable_data_ptr<float>();
  a.gradients = gradients.const_data_ptr<float>();
  a.copy = copy.defined() ? static_cast<cuda::Bf16*>(copy.mutable_data_ptr()) : nullptr;
  cuda::adamw(a, stream_of(parameters));
}

}  // namespace conclave::kernels
