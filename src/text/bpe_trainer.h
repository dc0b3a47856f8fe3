// SPDX-License-Identifier: Apache-2.0
// Learns the merges of a byte-level BPE (Sennrich et al. 2016) from counts of the pieces that a PreTokenizer cuts. The
// result is a function of the text alone, not of the number of threads nor of the order of the documents. It reads no
// files.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/pre_tokenizer.h"

namespace conclave::text {

// How often each piece occurs. Not for use by two threads at once: each counts into its own, then merge_from.
class PieceCounts {
 public:
  void add(std::string_view piece, int64_t times = 1);
  void merge_from(const PieceCounts& other);
  const std::unordered_map<std::string, int64_t>& counts() const { return counts_; }

 private:
  std::unordered_map<std::string, int64_t> counts_;
  std::string key_;  // kept to look up without allocating
};

// Fills the next document, or returns false at the end. Called by one thread at a time.
using NextDocument = std::function<bool(std::string&)>;

// Cuts and counts every document on `threads` threads (at least 1). What `next` throws is thrown again here.
PieceCounts count_pieces(const NextDocument& next, const PreTokenizer& pre_tokenizer, int threads);

struct LearnedMerges {
  std::vector<std::string> tokens;  // bytes of each id; 0-255 are the single bytes, so id = byte value
  std::vector<Merge> merges;
};

// Merges the most frequent pair again and again until there are `max_tokens` tokens (>= 256) or no pair occurs twice.
// On equal counts the smaller left id wins, then the smaller right id. The count of a pair is that of adjacent
// positions, so "aaa" holds (a, a) twice. A merge whose text already is a token, or is in `reserved`, is not made: a
// text has one id.
LearnedMerges learn_merges(const PieceCounts& pieces, int32_t max_tokens, const std::vector<std::string>& reserved);

}  // namespace conclave::text
