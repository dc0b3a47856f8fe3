// SPDX-License-Identifier: Apache-2.0
#include "parallel/tree_reduce.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/bf16.h"
#include "core/error.h"

namespace conclave::parallel {
namespace {

constexpr int64_t kChunk = 8 * 1024;  // elements per piece of a threaded loop: a few buffers of it fit the cache

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
  summed_ = elements_;
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
void TreeAccumulator<T>::add_in(int to, int from, Elements part) {
  T* const sum = buffers_[to].span().data() + part.begin;
  const T* const other = buffers_[from].span().data() + part.begin;
  for_pieces(part.end - part.begin, [&](int64_t begin, int64_t end) { add(sum + begin, other + begin, end - begin); });
}

// The earlier block is the left branch at every level.
template <typename T>
std::vector<int> TreeAccumulator<T>::carry(Levels& levels, int own, Elements part) {
  std::vector<int> joined;
  size_t level = 0;
  for (; level < levels.size() && levels[level] != kNone; ++level)
    joined.push_back(std::exchange(levels[level], int{kNone}));
  // One pass over memory for all levels.
  T* const sum = buffers_[own].span().data();
  if (!joined.empty())
    for_pieces(part.end - part.begin, [&](int64_t begin, int64_t end) {
      for (const int other : joined)
        add(sum + part.begin + begin, buffers_[other].span().data() + part.begin + begin, end - begin);
    });
  if (level == levels.size()) levels.push_back(kNone);
  levels[level] = own;
  return joined;
}

template <typename T>
int TreeAccumulator<T>::fold(const Levels& levels, Elements part) {
  int sum = kNone;
  for (const int buffer : levels) {  // smallest first
    if (buffer == kNone) continue;
    if (sum != kNone) add_in(buffer, sum, part);
    sum = buffer;
  }
  return sum;
}

template <typename T>
void TreeAccumulator<T>::push() {
  current();
  for (const int buffer : carry(levels_, open_.front(), {0, summed_})) free_.push_back(buffer);
  open_.erase(open_.begin());
  ++pushed_;
}

template <typename T>
std::span<T> TreeAccumulator<T>::sum_from(int64_t begin) {
  check(begin <= summed_ && pushed_ + std::ssize(open_) > 0, "sums are made from the end to the beginning");
  const Elements part{begin, summed_};
  Levels levels = levels_;
  for (const int buffer : open_) carry(levels, buffer, part);
  summed_ = begin;
  return buffers_[fold(levels, part)].span();
}

template <typename T>
std::span<T> TreeAccumulator<T>::finish() {
  check(pushed_ > 0, "a tree has at least one micro-batch");
  check(open_.empty(), "the last micro-batch was pushed");
  return sum_from(0);
}

template <typename T>
TreeReduce<T>::TreeReduce(Plan plan)
    : plan_(std::move(plan)),
      folds_first_(plan_.order.empty() && (plan_.parts.group().size() == 1 || is_power_of_two(plan_.subtrees))),
      started_(plan_.parts.buckets().size(), false) {
  const int ranks = plan_.parts.group().size();
  if (ranks == 1) return;
  int64_t longest = 0;
  for (const OwnedRange& own : plan_.parts.own()) longest = std::max(longest, own.count);
  // A power of two of subtrees is one subtree of the rank; others have to travel one by one.
  const int64_t travelling = folds_first_ ? 1 : plan_.subtrees;
  for (size_t i = 0; i < std::min(kBucketsUnderWay, started_.size()); ++i)
    received_.emplace_back(ranks * travelling * longest);
}

template <typename T>
void TreeReduce<T>::start(size_t bucket, std::span<const std::span<T>> subtrees) {
  check(std::ssize(subtrees) == plan_.subtrees, "every rank brings the agreed number of subtrees");
  check(!started_.at(bucket), "a bucket is summed once");
  started_[bucket] = true;
  const auto& cuts = plan_.parts.buckets()[bucket];
  const int64_t begin = cuts.front(), elements = cuts.back() - begin;
  if (elements == 0) return;
  std::vector<T*> parts;
  for (const std::span<T> subtree : subtrees) {
    check(std::ssize(subtree) == plan_.parts.elements(), "every subtree has the agreed size");
    parts.push_back(subtree.data() + begin);
  }
  const bool alone = plan_.parts.group().size() == 1;
  if (alone) parts = ordered(parts);
  if (alone || folds_first_) {
    fold_all(std::span<T* const>(parts), elements);
    parts.resize(1);
  }
  if (!alone) return exchange(bucket, parts, subtrees[0]);
  if (parts[0] != subtrees[0].data() + begin) std::copy_n(parts[0], elements, subtrees[0].data() + begin);
}

template <typename T>
void TreeReduce<T>::exchange(size_t bucket, std::span<T* const> travelling, std::span<T> whole) {
  while (exchanges_.size() >= received_.size()) finish_exchange();
  const int ranks = plan_.parts.group().size();
  const int64_t own = plan_.parts.own(bucket).count, subtrees = std::ssize(travelling);
  Exchange& started = exchanges_.emplace_back(Exchange{.bucket = bucket, .whole = whole, .began = now()});
  T* const to = received_[next_received_++ % received_.size()].span().data();
  started.received.resize(subtrees * ranks);
  for (int64_t s = 0; s < subtrees; ++s)
    for (int r = 0; r < ranks; ++r) started.received[r * subtrees + s] = to + (s * ranks + r) * own;
  if (plan_.as_bf16) return send_as_bf16(started, travelling);
  send<T>(started, travelling, to);
}

// The parts of a travelling buffer lie in the order of the ranks, and so go out from where they are.
template <typename T>
template <typename N>
void TreeReduce<T>::send(Exchange& exchange, std::span<N* const> travelling, N* to) {
  const auto& cuts = plan_.parts.buckets()[exchange.bucket];
  const comm::Group& group = plan_.parts.group();
  const int64_t own = plan_.parts.own(exchange.bucket).count;
  const std::vector<int64_t> receive_counts(group.size(), own);
  std::vector<int64_t> send_counts;
  for (int r = 0; r < group.size(); ++r) send_counts.push_back(cuts[r + 1] - cuts[r]);
  for (N* const from : travelling) {
    exchange.works.push_back(group.start_all_to_all_v(
        std::span<const N>(from, cuts.back() - cuts.front()), std::span<const int64_t>(send_counts),
        std::span<N>(to, group.size() * own), std::span<const int64_t>(receive_counts)));
    to += group.size() * own;
  }
}

template <typename T>
void TreeReduce<T>::send_as_bf16(Exchange& exchange, std::span<T* const> travelling) {
  const auto& cuts = plan_.parts.buckets()[exchange.bucket];
  const int64_t elements = cuts.back() - cuts.front();
  exchange.sent.resize(std::ssize(travelling) * elements);
  exchange.arrived.resize(std::ssize(exchange.received) * plan_.parts.own(exchange.bucket).count);
  std::vector<uint16_t*> rounded;
  for (T* const from : travelling) {
    uint16_t* const part = rounded.emplace_back(exchange.sent.data() + std::ssize(rounded) * elements);
    for_pieces(elements, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) part[i] = to_bf16(static_cast<float>(from[i]));
    });
  }
  send<uint16_t>(exchange, rounded, exchange.arrived.data());
}

template <typename T>
void TreeReduce<T>::widen(const Exchange& exchange) const {
  T* const to = exchange.received[0];  // the first leaf is where all of them begin
  for_pieces(std::ssize(exchange.arrived), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = from_bf16(exchange.arrived[i]);
  });
}

template <typename T>
void TreeReduce<T>::finish_exchange() {
  Exchange done = std::move(exchanges_.front());
  exchanges_.pop_front();
  for (comm::Work& work : done.works) work.finish();
  record(done.bucket, "gradients out", done.began);
  if (plan_.as_bf16) widen(done);
  const OwnedRange& own = plan_.parts.own(done.bucket);
  const std::vector<T*> leaves = ordered(done.received);
  T* const to = done.whole.data() + own.begin;
  for_pieces(own.count, [&](int64_t begin, int64_t end) {
    fold(std::span<T* const>(leaves), begin, end);
    std::copy(leaves[0] + begin, leaves[0] + end, to + begin);
  });
  if (plan_.everywhere) gathers_.push_back({done.bucket, plan_.parts.start_gather(done.bucket, done.whole), now()});
}

template <typename T>
std::span<T> TreeReduce<T>::finish(std::span<const std::span<T>> subtrees) {
  for (size_t b = started_.size(); b-- > 0;)
    if (!started_[b]) start(b, subtrees);
  while (!exchanges_.empty()) finish_exchange();
  for (; !gathers_.empty(); gathers_.pop_front()) {
    gathers_.front().work.finish();
    record(gathers_.front().bucket, "gradients back", gathers_.front().began);
  }
  started_.assign(started_.size(), false);
  if (plan_.everywhere) return subtrees[0];
  T* const all = subtrees[0].data();
  for (const OwnedRange& own : plan_.parts.own())
    if (own.at != own.begin) std::copy(all + own.begin, all + own.end(), all + own.at);
  return subtrees[0].first(plan_.parts.count());
}

// From the start to the moment it was waited for.
template <typename T>
void TreeReduce<T>::record(size_t bucket, const char* phase, int64_t began) {
  if (plan_.timeline == nullptr || !plan_.timeline->on()) return;
  const std::string name = bucket < plan_.names.size() ? plan_.names[bucket] : std::to_string(bucket);
  plan_.timeline->add({.name = name, .phase = phase, .exchange = true, .begin = began, .end = plan_.timeline->now()});
}

template <typename T>
std::vector<T*> TreeReduce<T>::ordered(const std::vector<T*>& leaves) const {
  if (plan_.order.empty()) return leaves;
  check(plan_.order.size() == leaves.size(), "an order has every leaf");
  std::vector<T*> sorted;
  for (const int64_t leaf : plan_.order) sorted.push_back(leaves[leaf]);
  return sorted;
}

template void fill_zero<float>(std::span<float>);
template void fill_zero<double>(std::span<double>);
template class TreeAccumulator<float>;
template class TreeAccumulator<double>;
template class TreeReduce<float>;
template class TreeReduce<double>;

}  // namespace conclave::parallel
