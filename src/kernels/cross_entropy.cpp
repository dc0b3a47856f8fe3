// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
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
  if (is_bf16(logits_NV))
    return rounded(logits_NV, [&](Tensor& logits) { cross_entropy_rows(logits, targets, mask, gradient, loss_N); });
  const char* name = "cross_entropy_rows";
  check_tensors(name, {{logits_NV, "logits_NV"}, {loss_N, "loss_N"}});
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
  check_tensors(name, {{logits_NV, "logits_NV"}, {lse_N, "lse_N"}, {target_N, "target_N"}});
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
  check_tensors(name, {{logits_NV, "logits_NV"}, {share_N, "share_N"}, {loss_N, "loss_N"}});
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

void cross_entropy_rows(Tensor& logits_NV, const Tensor& targets_N, const Tensor& mask_N, bool gradient,
                        Tensor& loss_N) {
  if (on_device(logits_NV)) return cross_entropy_rows_on_device(logits_NV, targets_N, mask_N, gradient, loss_N);
  cross_entropy_rows(logits_NV, elements<int32_t>(targets_N), elements<float>(mask_N), gradient, loss_N);
}

namespace {

VocabularyPart on_host(const DeviceVocabularyPart& part) {
  return {elements<int32_t>(part.targets_N), elements<float>(part.mask_N), part.first};
}

}  // namespace

void cross_entropy_part(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient, Tensor& lse_N,
                        Tensor& target_N) {
  if (on_device(logits_NV)) return cross_entropy_part_on_device(logits_NV, part, gradient, lse_N, target_N);
  rounded(logits_NV, [&](Tensor& logits) { cross_entropy_part(logits, on_host(part), gradient, lse_N, target_N); });
}

void finish_cross_entropy_part(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient,
                               const Tensor& share_N, Tensor& loss_N) {
  if (on_device(logits_NV)) return finish_cross_entropy_part_on_device(logits_NV, part, gradient, share_N, loss_N);
  rounded(logits_NV,
          [&](Tensor& logits) { finish_cross_entropy_part(logits, on_host(part), gradient, share_N, loss_N); });
}

}  // namespace conclave::kernels
