// SPDX-License-Identifier: Apache-2.0
#include "kernels/arguments.h"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/on_device.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

// The arguments of both steps; the caller adds its own.
cuda::CrossEntropyPart checked_part(const char* name, const Tensor& logits_NV, const DeviceVocabularyPart& part,
                                    std::initializer_list<Argument> of_rows) {
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  const int64_t rows = logits_NV.size(0);
  check_beside(name, logits_NV, logits_NV.scalar_type(), {{logits_NV, "logits_NV"}});
  check_beside(name, logits_NV, at::kInt, {{part.targets_N, "targets_N"}});
  check_beside(name, logits_NV, at::kFloat, {{part.mask_N, "mask_N"}});
  check_beside(name, logits_NV, at::kFloat, of_rows);
  for (const Argument& argument : of_rows) check_sizes(name, argument, {rows});
  check_count(name, "targets_N", part.targets_N.numel(), rows);
  check_count(name, "mask_N", part.mask_N.numel(), rows);
  cuda::CrossEntropyPart a{};
  a.real = real_of(logits_NV);
  a.rows = rows, a.n = logits_NV.size(1), a.first = part.first;
  a.targets_N = part.targets_N.const_data_ptr<int32_t>();
  a.mask_N = part.mask_N.const_data_ptr<float>();
  a.logits_NV = logits_NV.mutable_data_ptr();
  return a;
}

}  // namespace

void cross_entropy_rows_on_device(Tensor& logits_NV, const Tensor& targets_N, const Tensor& mask_N, bool gradient,
                                  Tensor& loss_N) {
  const char* name = "cross_entropy_rows";
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  const int64_t rows = logits_NV.size(0);
  check_beside(name, logits_NV, logits_NV.scalar_type(), {{logits_NV, "logits_NV"}});
  check_beside(name, logits_NV, at::kFloat, {{loss_N, "loss_N"}, {mask_N, "mask_N"}});
  check_beside(name, logits_NV, at::kInt, {{targets_N, "targets_N"}});
  check_sizes(name, {loss_N, "loss_N"}, {rows});
  check_count(name, "targets_N", targets_N.numel(), rows);
  check_count(name, "mask_N", mask_N.numel(), rows);
  cuda::cross_entropy_rows(
      {real_of(logits_NV), rows, logits_NV.size(1), gradient, targets_N.const_data_ptr<int32_t>(),
       mask_N.const_data_ptr<float>(), logits_NV.mutable_data_ptr(), loss_N.mutable_data_ptr<float>()},
      stream_of(logits_NV));
}

void cross_entropy_part_on_device(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient, Tensor& lse_N,
                                  Tensor& target_N) {
  cuda::CrossEntropyPart a =
      checked_part("cross_entropy_part", logits_NV, part, {{lse_N, "lse_N"}, {target_N, "target_N"}});
  a.gradient = gradient;
  a.lse_N = lse_N.mutable_data_ptr<float>();
  a.target_N = target_N.mutable_data_ptr<float>();
  cuda::cross_entropy_part(a, stream_of(logits_NV));
}

void finish_cross_entropy_part_on_device(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient,
                                         const Tensor& share_N, Tensor& loss_N) {
  cuda::CrossEntropyPart a =
      checked_part("finish_cross_entropy_part", logits_NV, part, {{share_N, "share_N"}, {loss_N, "loss_N"}});
  a.gradient = gradient;
  a.share_N = share_N.const_data_ptr<float>();
  a.loss_N = loss_N.mutable_data_ptr<float>();
  cuda::finish_cross_entropy_part(a, stream_of(logits_NV));
}

}  // namespace conclave::kernels
