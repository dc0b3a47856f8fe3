// SPDX-License-Identifier: Apache-2.0
#include "kernels/softmax.h"

#include <ATen/ops/sigmoid.h>

#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

// An element costs about this many plain element operations: exp and a division.
constexpr int64_t kWork = 8;

// Whether column `a` is picked before a later column `b`'s score moves in front: ties stay, NaN is below everything.
template <typename T>
bool beats(T later, T earlier) {
  return later > earlier || (earlier != earlier && later == later);
}

// Insertion into the sorted list of the best so far. Columns come in rising order, so a tie never displaces a lower
// one.
template <typename T>
void top_k(const T* score, int64_t columns, int64_t k, int32_t* ids) {
  int64_t count = 0;
  for (int64_t e = 0; e < columns; ++e) {
    if (count == k && !beats(score[e], score[ids[k - 1]])) continue;
    int64_t place = count < k ? count++ : k - 1;
    for (; place > 0 && beats(score[e], score[ids[place - 1]]); --place) ids[place] = ids[place - 1];
    ids[place] = static_cast<int32_t>(e);
  }
}

}  // namespace

void softmax_rows(const Tensor& logits_TE, Tensor& probs_TE, Tensor& lse_T) {
  const char* name = "softmax_rows";
  check_tensors(name, {{logits_TE, "logits_TE"}, {probs_TE, "probs_TE"}, {lse_T, "lse_T"}});
  check_dimensions(name, {logits_TE, "logits_TE"}, 2);
  const int64_t rows = logits_TE.size(0), n = logits_TE.size(1);
  check_sizes(name, {probs_TE, "probs_TE"}, {rows, n});
  check_sizes(name, {lse_T, "lse_T"}, {rows});
  with_type(logits_TE, [&](auto zero) {
    using T = decltype(zero);
    const T* logits = logits_TE.const_data_ptr<T>();
    T* probs = probs_TE.mutable_data_ptr<T>();
    T* lse = lse_T.mutable_data_ptr<T>();
    for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) lse[t] = loops<T>().softmax(logits + t * n, probs + t * n, n);
    });
  });
}

void sigmoid_rows(const Tensor& logits_TE, Tensor& scores_TE) {
  if (on_device(logits_TE)) {
    at::sigmoid_out(scores_TE, logits_TE);
    return;
  }
  const char* name = "sigmoid_rows";
  check_tensors(name, {{logits_TE, "logits_TE"}, {scores_TE, "scores_TE"}});
  check_dimensions(name, {logits_TE, "logits_TE"}, 2);
  const int64_t rows = logits_TE.size(0), n = logits_TE.size(1);
  check_sizes(name, {scores_TE, "scores_TE"}, {rows, n});
  with_type(logits_TE, [&](auto zero) {
    using T = decltype(zero);
    const T* logits = logits_TE.const_data_ptr<T>();
    T* scores = scores_TE.mutable_data_ptr<T>();
    for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
      loops<T>().sigmoid(logits + begin * n, scores + begin * n, (end - begin) * n);
    });
  });
}

void top_k_rows(const Tensor& scores_TE, int64_t k, std::span<int32_t> ids_TK) {
  const char* name = "top_k_rows";
  check_tensors(name, {{scores_TE, "scores_TE"}});
  check_dimensions(name, {scores_TE, "scores_TE"}, 2);
  const int64_t rows = scores_TE.size(0), n = scores_TE.size(1);
  check(k >= 1 && k <= n, "top_k_rows: k must be at least 1 and at most the number of columns");
  check_count(name, "ids_TK", static_cast<int64_t>(ids_TK.size()), rows * k);
  with_type(scores_TE, [&](auto zero) {
    using T = decltype(zero);
    const T* scores = scores_TE.const_data_ptr<T>();
    for_rows(rows, 2 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) top_k(scores + t * n, n, k, ids_TK.data() + t * k);
    });
  });
}

}  // namespace conclave::kernels
