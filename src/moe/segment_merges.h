// SPDX-License-Identifier: Apache-2.0
// Which tokens share a merged expert (Lory, Zhong et al. 2024, arXiv 2405.03133): sequences are cut into segments of
// equal length, and a segment's tokens go through the merge that the mean of the segment before it asks for. A
// document's first piece has nothing before it, and nothing crosses from one document to the next.
#pragma once

#include <vector>

#include "core/batch.h"
#include "moe/router_config.h"

namespace conclave::moe {

// Tokens [begin, end) whose mean decides a merge; none: all experts count alike. `learns`: the decision has a gradient.
struct MergeSource {
  int64_t begin = 0, end = 0;
  bool learns = false;

  int64_t tokens() const { return end - begin; }
};

// Consecutive tokens of one segment and one document, and the merge that they go through.
struct MergedPiece {
  int64_t begin = 0, end = 0;
  int64_t merge = 0;
};

struct SegmentMerges {
  std::vector<MergeSource> sources;  // of the merges
  std::vector<MergedPiece> pieces;   // in the order of tokens; together all of them
};

// `own_first`: a document's first piece is merged by its own mean, without a gradient, and so sees its own future;
// otherwise it takes all experts alike.
SegmentMerges segment_merges(const Batch& batch, int64_t segment, bool own_first);

}  // namespace conclave::moe
