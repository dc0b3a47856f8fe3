// SPDX-License-Identifier: Apache-2.0
// The tables of hash layers (Roller et al. 2021, arXiv 2106.04426) that are made by looking at something: [V, k]
// experts of each token id, row-major. Numbers alone; where frequencies and embeddings come from is
// train/hash_tables.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/batch.h"
#include "moe/k_means.h"
#include "moe/router_config.h"

namespace conclave::moe {

struct TableShape {
  int64_t vocab = 0, experts = 0, top_k = 1;  // no more experts for a token than there are
};

// The id that decides about token `t`: its own, or that of the token before it in its document (the first has its own).
int32_t hashed_id(const Batch& batch, int64_t t, HashFeature feature);

// (k·id + j) mod E.
std::vector<int64_t> modulo_table(const TableShape& shape);
// Ids by descending count (ties: the lower id) to the k experts with the smallest sums of counts so far (ties: the
// lower expert). So sums of two experts never differ by more than the largest count. Ids that were not counted are
// dealt out in turn.
std::vector<int64_t> balanced_table(std::span<const int64_t> counts_V, const TableShape& shape);
// Expert c takes the ids of cluster c; with k experts for each id also those of the clusters with the next k − 1
// nearest centres, so that all ids of a cluster take the same experts. As many clusters as experts.
std::vector<int64_t> clustered_table(const Clusters& clusters, const TableShape& shape);
// Ids are dealt out in turn, cluster after cluster: every expert gets equally many ids of each cluster and of all,
// within one.
std::vector<int64_t> dispersed_table(const Clusters& clusters, const TableShape& shape);

}  // namespace conclave::moe
