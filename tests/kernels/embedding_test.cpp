// SPDX-License-Identifier: Apache-2.0
#include "kernels/embedding.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

TEST(EmbeddingTest, EqualsTheReferenceForwardAndBackward) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t columns : {1, 5, 64, 200}) {
      for (const int64_t count : {0, 1, 300}) {
        const auto tokens = random_indices(count, -1, 13, 1);
        const Tensor weight = random_tensor({13, columns}, dtype, 2), dy = random_tensor({count, columns}, dtype, 3);
        Tensor out = at::empty({count, columns}, dtype), dweight = random_tensor({13, columns}, dtype, 4);
        const Tensor expected = dweight.clone();
        embedding(weight, tokens, out);
        embedding_backward(dy, tokens, dweight);
        for (int64_t t = 0; t < count; ++t) {
          expect_same_bits(out[t], tokens[t] < 0 ? at::zeros({columns}, dtype) : weight[tokens[t]], "row");
          if (tokens[t] >= 0) expected[tokens[t]].add_(dy[t]);
        }
        expect_same_bits(dweight, expected, "summed in token order");
      }
    }
  }
}

TEST(EmbeddingTest, ThreadsDoNotShow) {
  const auto tokens = random_indices(3000, 0, 17, 1);
  const Tensor dy = random_tensor({3000, 331}, at::kFloat, 3);
  expect_threads_do_not_show([&] {
    Tensor dweight = at::zeros({17, 331}, at::kFloat);
    embedding_backward(dy, tokens, dweight);
    return std::vector<Tensor>{dweight};
  });
}

TEST(EmbeddingTest, TokensOutsideTheTableAreRefused) {
  Tensor weight = random_tensor({4, 2}, at::kFloat, 1), out = at::empty({1, 2}, at::kFloat);
  EXPECT_THROW(embedding(weight, std::vector<int32_t>{4}, out), BugError);
  EXPECT_THROW(embedding_backward(out, std::vector<int32_t>{4}, weight), BugError);
}

}  // namespace
}  // namespace conclave::kernels
