// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding (Sennrich et al. 2016) over bytes: turns one piece of text into token ids by applying merges,
// lowest rank first, leftmost on a tie. It does not split text and knows no special tokens. Immutable after
// construction, so threads share it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/flat_map.h"

namespace conclave::text {

struct Merge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;  // two merges may give the same token

  bool operator==(const Merge&) const = default;
};

struct BpeTables {
  std::array<int32_t, 256> byte_ids{};  // the token of each single byte
  std::vector<Merge> merges;            // in order of rank
  // Pieces that are a token as they stand, whatever the merges say (`ignore_merges` in tokenizer.json). Empty = off.
  std::unordered_map<std::string, int32_t> whole_pieces;
};

class Bpe {
 public:
  explicit Bpe(BpeTables tables);

  // Appends the ids of `piece` to `out`. Time is linear times logarithm in its size.
  void encode(std::string_view piece, std::vector<int32_t>& out) const;

  const BpeTables& tables() const { return tables_; }

 private:
  struct Result {
    int32_t rank = -1;
    int32_t merged = -1;
  };
  BpeTables tables_;
  FlatMap<Result> results_;  // by pair

  Result result(int32_t left, int32_t right) const {
    const Result* found = results_.find(pair_key(left, right));
    return found ? *found : Result{};
  }
  void encode_short(std::string_view piece, std::vector<int32_t>& out) const;
  void encode_long(std::string_view piece, std::vector<int32_t>& out) const;
};

}  // namespace conclave::text
