// SPDX-License-Identifier: Apache-2.0
#include "text/bpe_trainer.h"

#include <algorithm>
#include <exception>
#include <future>
#include <limits>
#include <mutex>
#include <queue>
#include <unordered_set>

#include "core/error.h"

namespace conclave::text {
namespace {

// Documents handed to a thread at a time: enough that taking the lock costs nothing.
constexpr size_t kBatchBytes = size_t{1} << 20;
// A pair that occurs once says nothing about the language.
constexpr int64_t kFewestOccurrences = 2;

// The distinct pieces as linked symbols, how often each adjacent pair occurs and where.
class MergeTable {
 public:
  MergeTable(const PieceCounts& pieces, int32_t max_tokens, const std::vector<std::string>& reserved);
  LearnedMerges run();

 private:
  using Position = uint32_t;
  static constexpr Position kNone = std::numeric_limits<Position>::max();
  struct Symbol {
    int32_t id;
    Position previous, next;
    uint32_t piece;
  };
  struct Pair {
    int64_t count = 0;
    std::vector<Position> at;  // of the left symbol; may hold places where the pair no longer is
  };
  struct Candidate {
    int64_t count;
    uint64_t pair;
    // The heap gives the greatest: highest count, then smallest pair.
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void add_piece(const std::string& piece, int64_t times);
  void count(Position left, int64_t sign, std::vector<uint64_t>* grown);
  void apply(const Merge& merge);

  int32_t max_tokens_;
  LearnedMerges learned_;
  std::unordered_set<std::string> taken_;  // texts that cannot become a token again
  std::vector<int64_t> times_;             // of each piece
  std::vector<Symbol> symbols_;
  FlatMap<Pair> pairs_;
  std::priority_queue<Candidate> candidates_;
};

MergeTable::MergeTable(const PieceCounts& pieces, int32_t max_tokens, const std::vector<std::string>& reserved)
    : max_tokens_(max_tokens), taken_(reserved.begin(), reserved.end()) {
  for (int byte = 0; byte < 256; ++byte) {
    learned_.tokens.emplace_back(1, static_cast<char>(byte));
  }
  for (const auto& [piece, times] : pieces.counts()) add_piece(piece, times);
  for (Position left = 0; left < symbols_.size(); ++left) count(left, +1, nullptr);
  pairs_.for_each([&](uint64_t key, const Pair& pair) { candidates_.push({pair.count, key}); });
}

void MergeTable::add_piece(const std::string& piece, int64_t times) {
  if (symbols_.size() + piece.size() >= kNone) {
    throw DataError("training text holds more than {} bytes of distinct words: train on a sample of it", kNone);
  }
  const auto index = static_cast<uint32_t>(times_.size());
  times_.push_back(times);
  const auto first = static_cast<Position>(symbols_.size());
  const auto last = static_cast<Position>(first + piece.size() - 1);
  for (Position at = first; at <= last; ++at) {
    const auto byte = static_cast<unsigned char>(piece[at - first]);
    symbols_.push_back({byte, at == first ? kNone : at - 1, at == last ? kNone : at + 1, index});
  }
}

// Adds (sign +1) or takes away (-1) the pair that starts at `left`; pairs that gained are noted in `grown`.
void MergeTable::count(Position left, int64_t sign, std::vector<uint64_t>* grown) {
  const Symbol& symbol = symbols_[left];
  if (symbol.next == kNone) return;
  const uint64_t key = pair_key(symbol.id, symbols_[symbol.next].id);
  Pair& pair = pairs_[key];
  pair.count += sign * times_[symbol.piece];
  if (sign < 0) return;
  pair.at.push_back(left);
  if (grown) grown->push_back(key);
}

void MergeTable::apply(const Merge& merge) {
  std::vector<Position> places;
  places.swap(pairs_[pair_key(merge.left, merge.right)].at);
  // Left to right, so that "aaa" becomes "aa a".
  std::sort(places.begin(), places.end());
  std::vector<uint64_t> grown;
  for (const Position left : places) {
    Symbol& symbol = symbols_[left];
    const Position right = symbol.next;
    if (symbol.id != merge.left || right == kNone || symbols_[right].id != merge.right) continue;
    count(left, -1, nullptr);
    count(right, -1, nullptr);
    if (symbol.previous != kNone) count(symbol.previous, -1, nullptr);
    symbol.id = merge.merged;
    symbol.next = symbols_[right].next;
    if (symbol.next != kNone) symbols_[symbol.next].previous = left;
    symbols_[right].id = -1;  // swallowed: no list entry for it is valid any more
    count(left, +1, &grown);
    if (symbol.previous != kNone) count(symbol.previous, +1, &grown);
  }
  std::sort(grown.begin(), grown.end());
  grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
  for (const uint64_t key : grown) candidates_.push({pairs_.find(key)->count, key});
}

LearnedMerges MergeTable::run() {
  while (static_cast<int32_t>(learned_.tokens.size()) < max_tokens_ && !candidates_.empty()) {
    const Candidate best = candidates_.top();
    candidates_.pop();
    const int64_t now = pairs_.find(best.pair)->count;
    if (now != best.count) {  // counts only fall between pushes: put it back where it belongs now
      if (now > 0 && now < best.count) candidates_.push({now, best.pair});
      continue;
    }
    if (now < kFewestOccurrences) break;
    const Merge merge{left_of(best.pair), right_of(best.pair), static_cast<int32_t>(learned_.tokens.size())};
    std::string text = learned_.tokens[merge.left] + learned_.tokens[merge.right];
    if (!taken_.insert(text).second) continue;
    learned_.tokens.push_back(std::move(text));
    learned_.merges.push_back(merge);
    apply(merge);
  }
  return std::move(learned_);
}

}  // namespace

void PieceCounts::add(std::string_view piece, int64_t times) {
  key_.assign(piece);
  counts_[key_] += times;
}

void PieceCounts::merge_from(const PieceCounts& other) {
  for (const auto& [piece, times] : other.counts_) counts_[piece] += times;
}

PieceCounts count_pieces(const NextDocument& next, const PreTokenizer& pre_tokenizer, int threads) {
  std::mutex mutex;
  bool finished = false;
  const auto take_batch = [&] {
    std::vector<std::string> batch;
    const std::lock_guard lock(mutex);
    std::string document;
    for (size_t bytes = 0; bytes < kBatchBytes && !finished; bytes += batch.back().size()) {
      // Set first: when `next` throws, the other threads stop too.
      finished = true;
      if (!next(document)) break;
      finished = false;
      batch.push_back(std::move(document));
    }
    return batch;
  };
  const auto work = [&] {
    PieceCounts counts;
    for (auto batch = take_batch(); !batch.empty(); batch = take_batch()) {
      for (const std::string& document : batch) {
        pre_tokenizer.for_each(document, [&](std::string_view piece) { counts.add(piece); });
      }
    }
    return counts;
  };
  std::vector<std::future<PieceCounts>> others;
  for (int i = 1; i < threads; ++i) others.push_back(std::async(std::launch::async, work));
  PieceCounts total = work();
  for (auto& other : others) total.merge_from(other.get());
  return total;
}

LearnedMerges learn_merges(const PieceCounts& pieces, int32_t max_tokens, const std::vector<std::string>& reserved) {
  check(max_tokens >= 256, "a byte-level vocabulary holds every byte");
  return MergeTable(pieces, max_tokens, reserved).run();
}

}  // namespace conclave::text
