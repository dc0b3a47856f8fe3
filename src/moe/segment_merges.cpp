// SPDX-License-Identifier: Apache-2.0
#include "moe/segment_merges.h"

namespace conclave::moe {
namespace {

// Whether a piece ends before token t: at a multiple of the segment's length in the sequence, or with the document.
bool breaks(const Batch& batch, int64_t segment, int64_t t) {
  return t % batch.length % segment == 0 || batch.segment_ids[t] != batch.segment_ids[t - 1];
}

// Whether tokens t - 1 and t are neighbours in a document.
bool continues(const Batch& batch, int64_t t) {
  return t % batch.length != 0 && batch.segment_ids[t] == batch.segment_ids[t - 1];
}

}  // namespace

SegmentMerges segment_merges(const Batch& batch, int64_t segment, bool own_first) {
  SegmentMerges all;
  int64_t alike = -1;  // the merge of all first pieces
  for (int64_t begin = 0, end = 0; begin < batch.tokens_count(); begin = end) {
    for (end = begin + 1; end < batch.tokens_count() && !breaks(batch, segment, end);) ++end;
    MergedPiece piece{begin, end, std::ssize(all.sources)};
    if (continues(batch, begin)) {
      // The piece before ends where this one's segment begins.
      all.sources.push_back({all.pieces.back().begin, begin, true});
    } else if (own_first) {
      all.sources.push_back({begin, end, false});
    } else if (alike < 0) {
      alike = piece.merge;
      all.sources.push_back({});
    } else {
      piece.merge = alike;
    }
    all.pieces.push_back(piece);
  }
  return all;
}

}  // namespace conclave::moe
