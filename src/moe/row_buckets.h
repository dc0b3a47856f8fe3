// SPDX-License-Identifier: Apache-2.0
// Rows of this rank that are bound for one expert and travel as one (LSH-MoE, arXiv 2411.08446). Towards dispatcher
// and experts a bucket is a token that one expert has chosen; its row is a mean. T tokens, N pairs of token and expert,
// B buckets, D width.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "moe/routing.h"

namespace conclave::moe {

struct RowBuckets {
  std::vector<int32_t> bucket_of_N;
  std::vector<int32_t> offsets_B1, pairs_N;  // pairs of each bucket, in the order of tokens
  std::vector<int32_t> token_of_N;           // Routing::rows_N

  int64_t count() const { return static_cast<int64_t>(offsets_B1.size()) - 1; }
  int64_t size(int64_t bucket) const { return offsets_B1[bucket + 1] - offsets_B1[bucket]; }
  std::span<const int32_t> of(int64_t bucket) const {
    return std::span(pairs_N).subspan(offsets_B1[bucket], size(bucket));
  }
};

// Pairs of one expert whose tokens have one class share a bucket; without classes each pair has its own. Buckets are
// numbered by their first token.
RowBuckets make_buckets(const Routing& routing, std::span<const int32_t> classes_T);
// Buckets as tokens of one pick each, for dispatch.
Routing bucket_routing(const RowBuckets& buckets, const Routing& routing);

// [B, D]: sums over the rows of each bucket in the order of tokens, in double, divided by their number.
Tensor bucket_means(const Tensor& x_TD, const RowBuckets& buckets);
// dx [T, D] of that.
Tensor bucket_means_backward(const Tensor& dmeans_BD, const RowBuckets& buckets, const Routing& routing);

// What a layer's tokens take from what came back for their buckets.
struct Expansion {
  Tensor x_TD, weights_N, means_BD, results_BD;
};
// y_t = Σ_n w_n (results_b + x_t − means_b) over the pairs of t in the order of its picks. A bucket of one row has no
// residual: x is its mean.
Tensor expand(const Expansion& in, const RowBuckets& buckets, const Routing& routing);
// Gradients of all four, where y has the gradient `dy_TD`.
Expansion expand_backward(const Expansion& in, const Tensor& dy_TD, const RowBuckets& buckets, const Routing& routing);

}  // namespace conclave::moe
