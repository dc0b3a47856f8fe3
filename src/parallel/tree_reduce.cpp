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
  current_ = kNone;
  levels_.clear();
  free_.clear();
  // The first buffer is taken first again, so every step uses the same memory in the same order.
  for (int i = static_cast<int>(buffers_.size()) - 1; i >= 0; --i) free_.push_back(i);
}

template <typename T>
std::span<T> TreeAccumulator<T>::current() {
  if (current_ == kNone) {
    current_ = acquire();
    fill_zero(buffers_[current_].span());
  }
  return buffers_[current_].span();
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
  levels_[level] = current_;
  current_ = kNone;
  ++pushed_;
}

template <typename T>
std::span<T> TreeAccumulator<T>::finish() {
  check(pushed_ > 0, "a tree has at least one micro-batch");
  check(current_ == kNone, "the last micro-batch was pushed");
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
TreeAllReduce<T>::TreeAllReduce(const comm::Group& group, int64_t elements, int subtrees_per_rank)
    : group_(group),
      elements_(elements),
      subtrees_per_rank_(subtrees_per_rank),
      cuts_(slice_cuts(elements, group.size())) {
  for (int r = 0; r < group_.size(); ++r) slice_sizes_.push_back(cuts_[r + 1] - cuts_[r]);
  own_sizes_.assign(group_.size(), slice_sizes_[group_.rank()]);
  if (group_.size() == 1) return;
  // A power of two of subtrees is one subtree of the rank; others have to travel one by one.
  const int travelling = is_power_of_two(subtrees_per_rank_) ? 1 : subtrees_per_rank_;
  received_ = AlignedBuffer<T>(travelling * group_.size() * slice_sizes_[group_.rank()]);
}

template <typename T>
void TreeAllReduce<T>::run(std::span<const std::span<T>> subtrees) {
  check(std::ssize(subtrees) == subtrees_per_rank_, "every rank brings the agreed number of subtrees");
  std::vector<T*> parts;
  for (const std::span<T> subtree : subtrees) {
    check(std::ssize(subtree) == elements_, "every subtree has the agreed size");
    parts.push_back(subtree.data());
  }
  const std::span<T> result = subtrees[0];
  const int ranks = group_.size();
  if (ranks == 1 || is_power_of_two(subtrees_per_rank_)) {
    fold_all(std::span<T* const>(parts), elements_);
    parts.resize(1);
  }
  if (ranks == 1) return;
  const int64_t own = slice_sizes_[group_.rank()];
  const auto travelling = std::ssize(parts);
  std::vector<comm::Work> works;
  for (int64_t i = 0; i < travelling; ++i)
    works.push_back(group_.start_all_to_all_v(std::span<const T>(subtrees[i]), std::span<const int64_t>(slice_sizes_),
                                              received_.span().subspan(i * ranks * own, ranks * own),
                                              std::span<const int64_t>(own_sizes_)));
  for (comm::Work& work : works) work.finish();
  std::vector<T*> leaves;  // rank by rank, each with its subtrees
  for (int r = 0; r < ranks; ++r)
    for (int64_t i = 0; i < travelling; ++i) leaves.push_back(received_.span().data() + (i * ranks + r) * own);
  const std::span<T> slice = result.subspan(cuts_[group_.rank()], own);
  for_pieces(own, [&](int64_t begin, int64_t end) {
    fold(std::span<T* const>(leaves), begin, end);
    std::copy(leaves[0] + begin, leaves[0] + end, slice.data() + begin);
  });
  group_.all_gather_v(std::span<const T>(slice), result, std::span<const int64_t>(slice_sizes_));
}

template void fill_zero<float>(std::span<float>);
template void fill_zero<double>(std::span<double>);
template class TreeAccumulator<float>;
template class TreeAccumulator<double>;
template class TreeAllReduce<float>;
template class TreeAllReduce<double>;

}  // namespace conclave::parallel
