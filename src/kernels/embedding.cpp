// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding.h"

#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"
#include "kernels/rows.h"

namespace conclave::kernels {

void embedding(const Tensor& weight_VD, std::span<const int32_t> tokens, Tensor& out_TD) {
  gather_rows(weight_VD, tokens, out_TD);
}

void embedding_backward(const Tensor& dy_TD, std::span<const int32_t> tokens, Tensor& dweight_VD) {
  if (is_bf16(dy_TD)) return embedding_backward(wide(dy_TD), tokens, dweight_VD);
  const char* name = "embedding_backward";
  check_tensors(name, {{dy_TD, "dy_TD"}, {dweight_VD, "dweight_VD"}});
  check_dimensions(name, {dweight_VD, "dweight_VD"}, 2);
  const int64_t vocabulary = dweight_VD.size(0), n = dweight_VD.size(1), count = static_cast<int64_t>(tokens.size());
  check_sizes(name, {dy_TD, "dy_TD"}, {count, n});
  for (const int32_t token : tokens) {
    if (token >= 0) check_index(name, "tokens", token, vocabulary);
  }
  with_type(dy_TD, [&](auto zero) {
    using T = decltype(zero);
    const T* dy = dy_TD.const_data_ptr<T>();
    T* dweight = dweight_VD.mutable_data_ptr<T>();
    for_column_blocks(n, count, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < count; ++t) {
        if (tokens[t] < 0) continue;
        loops<T>().add(dweight + tokens[t] * n + begin, dy + t * n + begin, end - begin);
      }
    });
  });
}

void embedding(const Tensor& weight_VD, const Tensor& tokens_T, Tensor& out_TD) {
  if (on_device(weight_VD)) return gather_rows_on_device(weight_VD, tokens_T, out_TD);
  embedding(weight_VD, elements<int32_t>(tokens_T), out_TD);
}

void embedding_backward(const Tensor& dy_TD, const Tensor& tokens_T, Tensor& dweight_VD) {
  if (on_device(dy_TD)) return embedding_backward_on_device(dy_TD, tokens_T, dweight_VD);
  embedding_backward(dy_TD, elements<int32_t>(tokens_T), dweight_VD);
}

}  // namespace conclave::kernels
