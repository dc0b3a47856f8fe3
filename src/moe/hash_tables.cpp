// SPDX-License-Identifier: Apache-2.0
#include "moe/hash_tables.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace conclave::moe {
namespace {

std::vector<int64_t> empty_table(const TableShape& shape) {
  check(shape.top_k <= shape.experts, "a row of a hash table has different experts");
  return std::vector<int64_t>(shape.vocab * shape.top_k);
}

// Row `id`: the experts that follow each other from the `turn`-th multiple of k on.
void deal(std::vector<int64_t>& table, const TableShape& shape, int64_t id, int64_t turn) {
  for (int64_t j = 0; j < shape.top_k; ++j) table[id * shape.top_k + j] = (turn * shape.top_k + j) % shape.experts;
}

}  // namespace

int32_t hashed_id(const Batch& batch, int64_t t, HashFeature feature) {
  const bool first = t % batch.length == 0 || batch.segment_ids[t] != batch.segment_ids[t - 1];
  return batch.tokens[feature == HashFeature::kPrevious && !first ? t - 1 : t];
}

std::vector<int64_t> modulo_table(const TableShape& shape) {
  std::vector<int64_t> table = empty_table(shape);
  for (int64_t id = 0; id < shape.vocab; ++id) deal(table, shape, id, id);
  return table;
}

std::vector<int64_t> balanced_table(std::span<const int64_t> counts_V, const TableShape& shape) {
  check(std::ssize(counts_V) == shape.vocab, "one count for each id");
  std::vector<int64_t> table = empty_table(shape), ids(shape.vocab), load(shape.experts, 0), experts(shape.experts);
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return counts_V[a] > counts_V[b]; });
  int64_t unseen = 0;
  for (const int64_t id : ids) {
    if (counts_V[id] == 0) {
      deal(table, shape, id, unseen++);
      continue;
    }
    std::iota(experts.begin(), experts.end(), 0);
    const auto last = experts.begin() + shape.top_k;
    std::partial_sort(experts.begin(), last, experts.end(),
                      [&](int64_t a, int64_t b) { return std::pair(load[a], a) < std::pair(load[b], b); });
    std::copy(experts.begin(), last, table.begin() + id * shape.top_k);
    std::for_each(experts.begin(), last, [&](int64_t e) { load[e] += counts_V[id]; });
  }
  return table;
}

std::vector<int64_t> clustered_table(const Clusters& clusters, const TableShape& shape) {
  check(clusters.count() == shape.experts && std::ssize(clusters.of_N) == shape.vocab, "a cluster for each expert");
  std::vector<int64_t> table = empty_table(shape);
  std::vector<std::vector<int64_t>> nearest(shape.experts, std::vector<int64_t>(shape.experts));
  for (int64_t c = 0; c < shape.experts; ++c) {
    std::vector<double> distance(shape.experts);
    // A cluster is the nearest to itself, wherever the others lie.
    for (int64_t other = 0; other < shape.experts; ++other)
      distance[other] = other == c ? -1 : clusters.squared_distance(c, other);
    std::iota(nearest[c].begin(), nearest[c].end(), 0);
    std::stable_sort(nearest[c].begin(), nearest[c].end(),
                     [&](int64_t a, int64_t b) { return distance[a] < distance[b]; });
  }
  for (int64_t id = 0; id < shape.vocab; ++id)
    std::copy_n(nearest[clusters.of_N[id]].begin(), shape.top_k, table.begin() + id * shape.top_k);
  return table;
}

std::vector<int64_t> dispersed_table(const Clusters& clusters, const TableShape& shape) {
  check(std::ssize(clusters.of_N) == shape.vocab, "a cluster for each id");
  std::vector<int64_t> table = empty_table(shape), ids(shape.vocab);
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return clusters.of_N[a] < clusters.of_N[b]; });
  for (int64_t turn = 0; turn < shape.vocab; ++turn) deal(table, shape, ids[turn], turn);
  return table;
}

}  // namespace conclave::moe
