// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/arguments.h"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

// An element costs about this many plain element operations: exp and three passes.
constexpr int64_t kWork = 8;

template <typename T>
T masked_row(T* logits, int64_t n, bool gradient) {
  if (gradient) std::fill_n(logits, n, T{0});
  return T{0};
}

template <typename T>
T row(T* logits, int64_t n, int32_t target, T mask, bool gradient) {
  const T logit = logits[target];
  if (!gradient) return mask * (loops<T>().log_sum_exp(logits, n) - logit);
  const T lse = loops<T>().softmax_in_place(logits, mask, n);
  logits[target] -= mask;
  return mask * (lse - logit);
}

std::span<const float> factors_of(const Tensor& mask_N) {
  return {mask_N.const_data_ptr<float>(), static_cast<size_t>(mask_N.numel())};
}

VocabularyPart host_part(const DeviceVocabularyPart& part) {
  return {indices_of(part.targets_N), factors_of(part.mask_N), part.first};
}

// The arguments of both steps; what a step does not use is null.
cuda::CrossEntropyPart device_part(const Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient) {
  cuda::CrossEntropyPart a{};
  a.real = real_of(logits_NV);
  a.rows = logits_NV.size(0), a.n = logits_NV.size(1), a.first = part.first;
  a.gradient = gradient;
  a.targets_N = part.targets_N.const_data_ptr<int32_t>();
  a.mask_N = part.mask_N.const_data_ptr<float>();
  a.logits_NV = logits_NV.mutable_data_ptr();
  return a;
}

// Calls body(row, column of its target or -1) for rows that count, masked(row) for the others.
template <typename Body, typename Masked>
void for_part_rows(const Tensor& logits_NV, const VocabularyPart& part, const Body& body, const Masked& masked) {
  const int64_t rows = logits_NV.size(0), n = logits_NV.size(1);
  check_count("cross_entropy_part", "targets", static_cast<int64_t>(part.targets.size()), rows);
  check_count("cross_entropy_part", "mask", static_cast<int64_t>(part.mask.size()), rows);
  for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = part.targets[i] - part.first;
      if (part.mask[i] == 0) {
        masked(i);
      } else {
        body(i, column >= 0 && column < n ? column : -1);
      }
    }
  });
}

}  // namespace

void cross_entropy_rows(Tensor& logits_NV, std::span<const int32_t> targets, std::span<const float> mask, bool gradient,
                        Tensor& loss_N) {
  const char* name = "cross_entropy_rows";
  check_tensors(name, {{logits_NV, "logits_NV"}});
  check_wide(name, logits_NV, {{loss_N, "loss_N"}});
  check_on_host(name, "targets", logits_NV);
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  const int64_t rows = logits_NV.size(0), n = logits_NV.size(1);
  check_sizes(name, {loss_N, "loss_N"}, {rows});
  check_count(name, "targets", static_cast<int64_t>(targets.size()), rows);
  check_count(name, "mask", static_cast<int64_t>(mask.size()), rows);
  for (int64_t i = 0; i < rows; ++i) {
    if (mask[i] != 0) check_index(name, "targets", targets[i], n);
  }
  with_type(logits_NV, [&](auto zero) {
    using T = decltype(zero);
    T* logits = logits_NV.mutable_data_ptr<T>();
    T* loss = loss_N.mutable_data_ptr<T>();
    for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        loss[i] = mask[i] == 0 ? masked_row(logits + i * n, n, gradient)
                               : row(logits + i * n, n, targets[i], static_cast<T>(mask[i]), gradient);
      }
    });
  });
}

void cross_entropy_part(Tensor& logits_NV, const VocabularyPart& part, bool gradient, Tensor& lse_N, Tensor& target_N) {
  const char* name = "cross_entropy_part";
  check_tensors(name, {{logits_NV, "logits_NV"}});
  check_wide(name, logits_NV, {{lse_N, "lse_N"}, {target_N, "target_N"}});
  check_on_host(name, "targets", logits_NV);
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  check_sizes(name, {lse_N, "lse_N"}, {logits_NV.size(0)});
  check_sizes(name, {target_N, "target_N"}, {logits_NV.size(0)});
  with_type(logits_NV, [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = logits_NV.size(1);
    T* logits = logits_NV.mutable_data_ptr<T>();
    T *lse = lse_N.mutable_data_ptr<T>(), *target = target_N.mutable_data_ptr<T>();
    const auto body = [&](int64_t i, int64_t column) {
      T* row = logits + i * n;
      target[i] = column < 0 ? T{0} : row[column];
      lse[i] =
          gradient ? loops<T>().softmax_in_place(row, static_cast<T>(part.mask[i]), n) : loops<T>().log_sum_exp(row, n);
    };
    for_part_rows(logits_NV, part, body,
                  [&](int64_t i) { target[i] = lse[i] = masked_row(logits + i * n, n, gradient); });
  });
}

void finish_cross_entropy_part(Tensor& logits_NV, const VocabularyPart& part, bool gradient, const Tensor& share_N,
                               Tensor& loss_N) {
  const char* name = "finish_cross_entropy_part";
  check_tensors(name, {{logits_NV, "logits_NV"}});
  check_wide(name, logits_NV, {{share_N, "share_N"}, {loss_N, "loss_N"}});
  check_on_host(name, "targets", logits_NV);
  check_sizes(name, {share_N, "share_N"}, {logits_NV.size(0)});
  check_sizes(name, {loss_N, "loss_N"}, {logits_NV.size(0)});
  with_type(logits_NV, [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = logits_NV.size(1);
    const T* share = share_N.const_data_ptr<T>();
    T *logits = logits_NV.mutable_data_ptr<T>(), *loss = loss_N.mutable_data_ptr<T>();
    const auto body = [&](int64_t i, int64_t column) {
      loss[i] *= static_cast<T>(part.mask[i]);
      if (!gradient) return;
      T* row = logits + i * n;
      for (int64_t j = 0; j < n; ++j) row[j] *= share[i];
      if (column >= 0) row[column] -= static_cast<T>(part.mask[i]);
    };
    for_part_rows(logits_NV, part, body, [&](int64_t i) { loss[i] = 0; });
  });
}

void cross_entropy_rows(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient, Tensor& loss_N) {
  const char* name = "cross_entropy_rows";
  check_tensors(name, {{logits_NV, "logits_NV"}});
  check_wide(name, logits_NV, {{loss_N, "loss_N"}});
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  const int64_t rows = logits_NV.size(0);
  check_sizes(name, {loss_N, "loss_N"}, {rows});
  check_indices(name, logits_NV, {part.targets_N, "targets_N"}, rows);
  check_factors(name, logits_NV, {part.mask_N, "mask_N"}, rows);
  check(part.first == 0, "cross_entropy_rows: the whole vocabulary is here");
  if (!on_device(logits_NV)) {
    return cross_entropy_rows(logits_NV, indices_of(part.targets_N), factors_of(part.mask_N), gradient, loss_N);
  }
  cuda::cross_entropy_rows({real_of(logits_NV), rows, logits_NV.size(1), gradient,
                            part.targets_N.const_data_ptr<int32_t>(), part.mask_N.const_data_ptr<float>(),
                            logits_NV.mutable_data_ptr(), loss_N.mutable_data_ptr<float>()},
                           stream_of(logits_NV));
}

void cross_entropy_part(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient, Tensor& lse_N,
                        Tensor& target_N) {
  const char* name = "cross_entropy_part";
  check_tensors(name, {{logits_NV, "logits_NV"}});
  check_wide(name, logits_NV, {{lse_N, "lse_N"}, {target_N, "target_N"}});
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  check_indices(name, logits_NV, {part.targets_N, "targets_N"}, logits_NV.size(0));
  check_factors(name, logits_NV, {part.mask_N, "mask_N"}, logits_NV.size(0));
  if (!on_device(logits_NV)) return cross_entropy_part(logits_NV, host_part(part), gradient, lse_N, target_N);
  check_sizes(name, {lse_N, "lse_N"}, {logits_NV.size(0)});
  check_sizes(name, {target_N, "target_N"}, {logits_NV.size(0)});
  cuda::CrossEntropyPart a = device_part(logits_NV, part, gradient);
  a.lse_N = lse_N.mutable_data_ptr<float>();
  a.target_N = target_N.mutable_data_ptr<float>();
  cuda::cross_entropy_part(a, stream_of(logits_NV));
}

void finish_cross_entropy_part(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient,
                               const Tensor& share_N, Tensor& loss_N) {
  const char* name = "finish_cross_entropy_part";
  check_tensors(name, {{logits_NV, "logits_NV"}});
  check_wide(name, logits_NV, {{share_N, "share_N"}, {loss_N, "loss_N"}});
  check_dimensions(name, {logits_NV, "logits_NV"}, 2);
  check_indices(name, logits_NV, {part.targets_N, "targets_N"}, logits_NV.size(0));
  check_factors(name, logits_NV, {part.mask_N, "mask_N"}, logits_NV.size(0));
  if (!on_device(logits_NV)) return finish_cross_entropy_part(logits_NV, host_part(part), gradient, share_N, loss_N);
  check_sizes(name, {share_N, "share_N"}, {logits_NV.size(0)});
  check_sizes(name, {loss_N, "loss_N"}, {logits_NV.size(0)});
  cuda::CrossEntropyPart a = device_part(logits_NV, part, gradient);
  a.share_N = share_N.const_data_ptr<float>();
  a.loss_N = loss_N.mutable_data_ptr<float>();
  cuda::finish_cross_entropy_part(a, stream_of(logits_NV));
}

}  // namespace conclave::kernels
