// SPDX-License-Identifier: Apache-2.0
#include "text/bpe.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <tuple>

#include "core/error.h"

namespace conclave::text {
namespace {

// Up to here scanning all pairs for the lowest rank beats keeping a heap.
constexpr size_t kShort = 32;

}  // namespace

Bpe::Bpe(BpeTables tables) : tables_(std::move(tables)) {
  for (size_t rank = 0; rank < tables_.merges.size(); ++rank) {
    const Merge& merge = tables_.merges[rank];
    Result& result = results_[pair_key(merge.left, merge.right)];
    check(result.rank < 0, "a pair is merged by one rule");
    result = {static_cast<int32_t>(rank), merge.merged};
  }
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& out) const {
  if (!tables_.whole_pieces.empty()) {
    const auto whole = tables_.whole_pieces.find(std::string(piece));
    if (whole != tables_.whole_pieces.end()) {
      out.push_back(whole->second);
      return;
    }
  }
  if (piece.size() <= kShort) {
    encode_short(piece, out);
  } else {
    encode_long(piece, out);
  }
}

void Bpe::encode_short(std::string_view piece, std::vector<int32_t>& out) const {
  std::array<int32_t, kShort> ids;
  std::array<Result, kShort> results;  // results[i] merges ids[i] with ids[i + 1]
  size_t size = piece.size();
  for (size_t i = 0; i < size; ++i) ids[i] = tables_.byte_ids[static_cast<unsigned char>(piece[i])];
  for (size_t i = 0; i + 1 < size; ++i) results[i] = result(ids[i], ids[i + 1]);
  while (size > 1) {
    size_t best = size;
    for (size_t i = 0; i + 1 < size; ++i) {
      if (results[i].rank >= 0 && (best == size || results[i].rank < results[best].rank)) best = i;
    }
    if (best == size) break;
    ids[best] = results[best].merged;
    std::copy(ids.begin() + best + 2, ids.begin() + size, ids.begin() + best + 1);
    std::copy(results.begin() + best + 1, results.begin() + size - 1, results.begin() + best);
    --size;
    if (best > 0) results[best - 1] = result(ids[best - 1], ids[best]);
    if (best + 1 < size) results[best] = result(ids[best], ids[best + 1]);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + size);
}

void Bpe::encode_long(std::string_view piece, std::vector<int32_t>& out) const {
  constexpr int64_t kNone = -1;
  struct Symbol {
    int32_t id;
    int64_t previous, next;
  };
  const auto size = static_cast<int64_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  using Candidate = std::tuple<int32_t, int64_t, uint64_t>;  // rank, position of the left symbol, the pair seen there
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int64_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const int32_t right_id = symbols[symbols[left].next].id;
    const Result found = result(symbols[left].id, right_id);
    if (found.rank >= 0) candidates.emplace(found.rank, left, pair_key(symbols[left].id, right_id));
  };
  for (int64_t i = 0; i < size; ++i) {
    symbols[i] = {tables_.byte_ids[static_cast<unsigned char>(piece[i])], i - 1, i + 1 < size ? i + 1 : kNone};
  }
  for (int64_t i = 0; i + 1 < size; ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, left, pair] = candidates.top();
    candidates.pop();
    const int64_t right = symbols[left].next;
    // An entry is stale once either symbol has become part of another: a swallowed symbol carries id -1.
    if (right == kNone || symbols[left].id < 0 || pair_key(symbols[left].id, symbols[right].id) != pair) continue;
    symbols[left].id = tables_.merges[rank].merged;
    symbols[left].next = symbols[right].next;
    if (symbols[left].next != kNone) symbols[symbols[left].next].previous = left;
    symbols[right].id = -1;
    consider(left);
    consider(symbols[left].previous);
  }
  for (int64_t i = 0; i != kNone && i < size; i = symbols[i].next) out.push_back(symbols[i].id);
}

}  // namespace conclave::text
