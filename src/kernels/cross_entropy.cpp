// SPDX-License-Identifier: Apache-2.0
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/arguments.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"

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

}  // namespace

void cross_entropy_rows(Tensor& logits_NV, std::span<const int32_t> targets, std::span<const float> mask, bool gradient,
                        Tensor& loss_N) {
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

}  // namespace conclave::kernels
