// SPDX-License-Identifier: Apache-2.0
#include "moe/row_buckets.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <unordered_map>

#include "kernels/parallel.h"

namespace conclave::moe {
namespace {

// Rows of numbers by their number.
template <typename T>
struct RowsOf {
  std::span<T> all;
  int64_t width;
  explicit RowsOf(const Tensor& rows) : all(elements<T>(rows)), width(rows.size(1)) {}
  T* operator[](int64_t row) const { return all.data() + row * width; }
};

// out[r] = what add(r, sum) adds to zeros, in double; rows in parallel, each by one thread.
template <typename T, typename Add>
void sum_into(const RowsOf<T>& out, int64_t rows, int64_t terms_per_row, const Add& add) {
  kernels::for_rows(rows, out.width * terms_per_row, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(out.width);
    for (int64_t r = begin; r < end; ++r) {
      std::fill(sum.begin(), sum.end(), 0.0);
      add(r, sum.data());
      for (int64_t d = 0; d < out.width; ++d) out[r][d] = static_cast<T>(sum[d]);
    }
  });
}

int64_t per_row(int64_t terms, int64_t rows) { return 1 + terms / std::max<int64_t>(1, rows); }

// Pairs of a token in the order of its picks.
std::span<const int32_t> pairs_of(const Routing& routing, int64_t token) {
  const int32_t first = routing.token_offsets_T1[token];
  return std::span(routing.token_rows_N).subspan(first, routing.token_offsets_T1[token + 1] - first);
}

std::vector<int32_t> experts_of(const Routing& routing) {
  std::vector<int32_t> experts(routing.pairs());
  for (int64_t e = 0; e < routing.experts(); ++e)
    std::fill(experts.begin() + routing.offsets_E1[e], experts.begin() + routing.offsets_E1[e + 1],
              static_cast<int32_t>(e));
  return experts;
}

}  // namespace

RowBuckets make_buckets(const Routing& routing, std::span<const int32_t> classes_T) {
  RowBuckets buckets;
  buckets.token_of_N = routing.rows_N;
  buckets.bucket_of_N.resize(routing.pairs());
  const std::vector<int32_t> experts = experts_of(routing);
  std::unordered_map<int64_t, int32_t> numbers;
  int32_t count = 0;
  for (const int32_t n : routing.token_rows_N) {
    if (classes_T.empty()) {
      buckets.bucket_of_N[n] = count++;
      continue;
    }
    const int64_t both = static_cast<int64_t>(classes_T[routing.rows_N[n]]) * routing.experts() + experts[n];
    const auto [known, fresh] = numbers.try_emplace(both, count);
    count += fresh;
    buckets.bucket_of_N[n] = known->second;
  }
  buckets.offsets_B1.assign(count + 1, 0);
  for (const int32_t b : buckets.bucket_of_N) ++buckets.offsets_B1[b + 1];
  for (int32_t b = 0; b < count; ++b) buckets.offsets_B1[b + 1] += buckets.offsets_B1[b];
  // Pairs of an expert are in the order of tokens.
  std::vector<int32_t> next(buckets.offsets_B1.begin(), buckets.offsets_B1.end() - 1);
  buckets.pairs_N.resize(routing.pairs());
  for (int32_t n = 0; n < routing.pairs(); ++n) buckets.pairs_N[next[buckets.bucket_of_N[n]]++] = n;
  return buckets;
}

Routing bucket_routing(const RowBuckets& buckets, const Routing& routing) {
  const std::vector<int32_t> experts = experts_of(routing);
  std::vector<int32_t> ids(buckets.count());
  for (int64_t n = 0; n < routing.pairs(); ++n) ids[buckets.bucket_of_N[n]] = experts[n];
  const std::vector<uint8_t> keep(ids.size(), 1);
  return make_routing(even_picks(std::move(ids), buckets.count()), keep, {0, buckets.count()}, routing.experts());
}

Tensor bucket_means(const Tensor& x_TD, const RowBuckets& buckets) {
  Tensor means = at::empty({buckets.count(), x_TD.size(1)}, x_TD.options());
  by_dtype(x_TD, [&](auto zero) {
    const RowsOf<decltype(zero)> x(x_TD), out(means);
    sum_into(out, buckets.count(), per_row(std::ssize(buckets.pairs_N), buckets.count()), [&](int64_t b, double* sum) {
      for (const int32_t n : buckets.of(b))
        for (int64_t d = 0; d < x.width; ++d) sum[d] += x[buckets.token_of_N[n]][d];
      for (int64_t d = 0; d < x.width; ++d) sum[d] /= static_cast<double>(buckets.size(b));
    });
  });
  return means;
}

Tensor bucket_means_backward(const Tensor& dmeans_BD, const RowBuckets& buckets, const Routing& routing) {
  Tensor dx = at::empty({routing.tokens, dmeans_BD.size(1)}, dmeans_BD.options());
  by_dtype(dx, [&](auto zero) {
    const RowsOf<decltype(zero)> dmeans(dmeans_BD), out(dx);
    sum_into(out, routing.tokens, per_row(routing.pairs(), routing.tokens), [&](int64_t t, double* sum) {
      for (const int32_t n : pairs_of(routing, t)) {
        const int32_t b = buckets.bucket_of_N[n];
        const auto size = static_cast<double>(buckets.size(b));
        for (int64_t d = 0; d < out.width; ++d) sum[d] += dmeans[b][d] / size;
      }
    });
  });
  return dx;
}

Tensor expand(const Expansion& in, const RowBuckets& buckets, const Routing& routing) {
  Tensor y = at::empty_like(in.x_TD);
  by_dtype(y, [&](auto zero) {
    using T = decltype(zero);
    const RowsOf<T> x(in.x_TD), means(in.means_BD), results(in.results_BD), out(y);
    const auto weights = elements<T>(in.weights_N);
    sum_into(out, routing.tokens, per_row(routing.pairs(), routing.tokens), [&](int64_t t, double* sum) {
      for (const int32_t n : pairs_of(routing, t)) {
        const int32_t b = buckets.bucket_of_N[n];
        const double weight = weights[n];
        for (int64_t d = 0; d < out.width; ++d) sum[d] += weight * results[b][d];
        if (buckets.size(b) == 1) continue;
        for (int64_t d = 0; d < out.width; ++d) sum[d] += weight * (static_cast<double>(x[t][d]) - means[b][d]);
      }
    });
  });
  return y;
}

namespace {

// dL/dw_n: the gradient of y times what the weight multiplies.
template <typename T>
void weights_backward(const Expansion& in, const RowsOf<T>& dy, const RowBuckets& buckets, std::span<T> dweights) {
  const RowsOf<T> x(in.x_TD), means(in.means_BD), results(in.results_BD);
  kernels::for_rows(std::ssize(dweights), dy.width * 4, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int32_t t = buckets.token_of_N[n], b = buckets.bucket_of_N[n];
      const double residual = buckets.size(b) > 1;
      double sum = 0;
      for (int64_t d = 0; d < dy.width; ++d)
        sum += dy[t][d] * (results[b][d] + residual * (static_cast<double>(x[t][d]) - means[b][d]));
      dweights[n] = static_cast<T>(sum);
    }
  });
}

}  // namespace

Expansion expand_backward(const Expansion& in, const Tensor& dy_TD, const RowBuckets& buckets, const Routing& routing) {
  Expansion gradients{at::empty_like(in.x_TD), at::empty_like(in.weights_N), at::empty_like(in.means_BD),
                      at::empty_like(in.results_BD)};
  by_dtype(dy_TD, [&](auto zero) {
    using T = decltype(zero);
    const RowsOf<T> dy(dy_TD), dx(gradients.x_TD), dmeans(gradients.means_BD), dresults(gradients.results_BD);
    const auto weights = elements<T>(in.weights_N);
    weights_backward<T>(in, dy, buckets, elements<T>(gradients.weights_N));
    const int64_t B = buckets.count(), of_bucket = per_row(routing.pairs(), B);
    sum_into(dresults, B, of_bucket, [&](int64_t b, double* sum) {
      for (const int32_t n : buckets.of(b))
        for (int64_t d = 0; d < dy.width; ++d) sum[d] += static_cast<double>(weights[n]) * dy[buckets.token_of_N[n]][d];
    });
    sum_into(dmeans, B, 1, [&](int64_t b, double* sum) {
      if (buckets.size(b) > 1)
        for (int64_t d = 0; d < dy.width; ++d) sum[d] = -static_cast<double>(dresults[b][d]);
    });
    sum_into(dx, routing.tokens, 1, [&](int64_t t, double* sum) {
      double weight = 0;
      for (const int32_t n : pairs_of(routing, t))
        if (buckets.size(buckets.bucket_of_N[n]) > 1) weight += weights[n];
      for (int64_t d = 0; d < dy.width; ++d) sum[d] = weight * dy[t][d];
    });
  });
  return gradients;
}

}  // namespace conclave::moe
