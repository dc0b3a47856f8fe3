// SPDX-License-Identifier: Apache-2.0
#include "parallel/tree_reduce.h"

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace conclave::parallel {
namespace {

constexpr int64_t kNormSlice = 64 * 1024;  // cuts fall between the slices of the gradient norm where possible
constexpr int64_t kCacheLine = 16;         // elements; enough for the cuts of small buffers
constexpr int64_t kChunk = 8 * 1024;       // elements per piece of a threaded loop: a few buffers of it fit the cache

// Calls body(begin, end) for pieces of [0, elements), from several threads. The pieces do not depend on the threads.
template <typename Body>
void for_pieces(int64_t elements, const Body& body) {
#pragma omp parallel for schedule(static) if (elements > kChunk)
  for (int64_t begin = 0; begin < elements; begin += kChunk) body(begin, std::min(begin + kChunk, elements));
}

template <typename T>
void add(T* __restrict sum, const T* __restrict other, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += other[i];
}

// parts[0][begin, end) becomes the tree's sum of all parts there; the other parts are scratch.
template <typename T>
void fold(std::span<T* const> parts, int64_t begin, int64_t end) {
  if (parts.size() == 1) return;
  const size_t left = tree_left(parts.size());
  fold(parts.first(left), begin, end);
  fold(parts.subspan(left), begin, end);
  add(parts[0] + begin, parts[left] + begin, end - begin);
}

template <typename T>
void fold_all(std::span<T* const> parts, int64_t elements) {
  if (parts.size() == 1) return;
  for_pieces(elements, [&](int64_t begin, int64_t end) { fold(parts, begin, end); });
}

bool is_power_of_two(int64_t n) { return n > 0 && std::has_single_bit(static_cast<uint64_t>(n)); }

}  // namespace

bool tree_fits(int64_t micro_batches, int64_t dp) {
  return micro_batches > 0 && micro_batches % dp == 0 && (dp == 1 || is_power_of_two(micro_batches / dp));
}

std::vector<int64_t> slice_cuts(int64_t elements, int ranks) {
  const int64_t unit = elements >= ranks * kNormSlice ? kNormSlice : kCacheLine;
  const int64_t units = (elements + unit - 1) / unit;
  std::vector<int64_t> cuts;
  for (int r = 0; r <= ranks; ++r) cuts.push_back(std::min((units * r + ranks - 1) / ranks * unit, elements));
  return cuts;
}

template <typename T>
void fill_zero(std::span<T> data) {
  for_pieces(std::ssize(data), [&](int64_t begin, int64_t end) { std::fill(&data[0] + begin, &data[0] + end, T{0}); });
}

template <typename T>
int TreeAccumulator<T>::acquire() {
  if (free_.empty()) {
    buffers_.emplace_back(elements_);
    return static_cast<int>(buffers_.size()) - 1;
  }
  const int buffer = free_.back();
  free_.pop_back();
  return buffer;
}

template <typename T>
void TreeAccumulator<T>::begin() {
  pushed_ = 0;
  open_.clear();
  levels_.clear();
  free_.clear();
  // The first buffer is taken first again, so every step uses the same memory in the same order.
  for (int i = static_cast<int>(buffers_.size()) - 1; i >= 0; --i) free_.push_back(i);
}

template <typename T>
std::span<T> TreeAccumulator<T>::current(int64_t ahead) {
  while (std::ssize(open_) <= ahead) {
    open_.push_back(acquire());
    fill_zero(buffers_[open_.back()].span());
  }
  return buffers_[open_[ahead]].span();
}

template <typename T>
void TreeAccumulator<T>::push() {
  T* const own = current().data();
  parts_.clear();
  size_t level = 0;
  for (; level < levels_.size() && levels_[level] != kNone; ++level) {
    parts_.push_back(buffers_[levels_[level]].span().data());
    free_.push_back(levels_[level]);
    levels_[level] = kNone;
  }
  // Carry: the earlier block is the left branch at every level. One pass over memory for all levels.
  if (!parts_.empty())
    for_pieces(elements_, [&](int64_t begin, int64_t end) {
      for (T* const part : parts_) add(own + begin, part + begin, end - begin);
    });
  if (level == levels_.size()) levels_.push_back(kNone);
  levels_[level] = open_.front();
  open_.erase(open_.begin());
  ++pushed_;
}

template <typename T>
std::span<T> TreeAccumulator<T>::finish() {
  check(pushed_ > 0, "a tree has at least one micro-batch");
  check(open_.empty(), "the last micro-batch was pushed");
  parts_.clear();  // smallest first
  size_t top = 0;
  for (size_t level = 0; level < levels_.size(); ++level) {
    if (levels_[level] == kNone) continue;
    parts_.push_back(buffers_[levels_[level]].span().data());
    top = level;
  }
  for (size_t i = 1; i < parts_.size(); ++i)
    for_pieces(elements_,
               [&](int64_t begin, int64_t end) { add(parts_[i] + begin, parts_[i - 1] + begin, end - begin); });
  return buffers_[levels_[top]].span();
}

template <typename T>
TreeReduce<T>::TreeReduce(const comm::Group& group, const Shards& wanted, int subtrees_per_rank, LeafOrder order,
                          int64_t round)
    : group_(group),
      wanted_(wanted),
      parts_(wanted.group().size() == group.size() ? wanted
                                                   : Shards(group, slice_cuts(wanted.elements(), group.size()))),
      subtrees_per_rank_(subtrees_per_rank),
      order_(std::move(order)),
      folds_first_(order_.empty() && (group.size() == 1 || is_power_of_two(subtrees_per_rank))) {
  check(wanted.group().size() == 1 || wanted.group().size() == group.size(), "shards are those of the ranks that sum");
  const int ranks = group_.size();
  if (ranks == 1) return;
  // A power of two of subtrees is one subtree of the rank; others have to travel one by one.
  const int64_t travelling = folds_first_ ? 1 : subtrees_per_rank_;
  for (int r = 0; r < ranks; ++r) longest_ = std::max(longest_, parts_.cuts()[r + 1] - parts_.cuts()[r]);
  round_ = std::clamp<int64_t>(round / (ranks * travelling), kCacheLine, longest_ + kCacheLine);
  sent_ = AlignedBuffer<T>(travelling * std::min(ranks * round_, parts_.elements()));
  received_ = AlignedBuffer<T>(travelling * ranks * std::min(round_, parts_.count()));
}

template <typename T>
std::span<T> TreeReduce<T>::run(std::span<const std::span<T>> subtrees) {
  check(std::ssize(subtrees) == subtrees_per_rank_, "every rank brings the agreed number of subtrees");
  std::vector<T*> parts;
  for (const std::span<T> subtree : subtrees) {
    check(std::ssize(subtree) == parts_.elements(), "every subtree has the agreed size");
    parts.push_back(subtree.data());
  }
  const int ranks = group_.size();
  if (ranks == 1) {
    parts = ordered(parts);
    fold_all(std::span<T* const>(parts), parts_.elements());
    if (parts[0] != subtrees[0].data()) std::copy_n(parts[0], parts_.elements(), subtrees[0].data());
    return wanted_.own(subtrees[0]);
  }
  if (folds_first_) {
    fold_all(std::span<T* const>(parts), parts_.elements());
    parts.resize(1);
  }
  for (int64_t first = 0; first < longest_; first += round_) exchange(parts, first);
  if (wanted_.group().size() < ranks) parts_.gather(subtrees[0]);
  return wanted_.own(subtrees[0]);
}

template <typename T>
std::vector<T*> TreeReduce<T>::ordered(const std::vector<T*>& leaves) const {
  if (order_.empty()) return leaves;
  check(order_.size() == leaves.size(), "an order has every leaf");
  std::vector<T*> sorted;
  for (const int64_t leaf : order_) sorted.push_back(leaves[leaf]);
  return sorted;
}

// The elements [first, first + round) of every part.
template <typename T>
void TreeReduce<T>::exchange(std::span<T* const> travelling, int64_t first) {
  const std::vector<int64_t>& cuts = parts_.cuts();
  const auto in_round = [&](int rank) { return std::clamp<int64_t>(cuts[rank + 1] - cuts[rank] - first, 0, round_); };
  const int64_t subtrees = std::ssize(travelling), own = in_round(group_.rank());
  std::vector<int64_t> send_counts;
  T* to = sent_.span().data();
  for (int r = 0; r < group_.size(); ++r) {
    const int64_t count = in_round(r);
    for (const T* const subtree : travelling) {
      for_pieces(count, [&](int64_t begin, int64_t end) {
        const T* const from = subtree + cuts[r] + first;
        std::copy(from + begin, from + end, to + begin);
      });
      to += count;
    }
    send_counts.push_back(subtrees * count);
  }
  const std::vector<int64_t> receive_counts(group_.size(), subtrees * own);
  group_.all_to_all_v(std::span<const T>(sent_.span().data(), to), std::span<const int64_t>(send_counts),
                      received_.span().first(group_.size() * subtrees * own), std::span<const int64_t>(receive_counts));
  std::vector<T*> leaves;  // rank by rank, each with its subtrees
  for (int64_t i = 0; i < group_.size() * subtrees; ++i) leaves.push_back(received_.span().data() + i * own);
  leaves = ordered(leaves);
  for_pieces(own, [&](int64_t begin, int64_t end) {
    fold(std::span<T* const>(leaves), begin, end);
    std::copy(leaves[0] + begin, leaves[0] + end, travelling[0] + parts_.begin() + first + begin);
  });
}

template void fill_zero<float>(std::span<float>);
template void fill_zero<double>(std::span<double>);
template class TreeAccumulator<float>;
template class TreeAccumulator<double>;
template class TreeReduce<float>;
template class TreeReduce<double>;

}  // namespace conclave::parallel
