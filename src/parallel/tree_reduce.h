// SPDX-License-Identifier: Apache-2.0
// Sums of whole gradient buffers on the tree of core/tree_sum.h over the global micro-batch index, so that the bits do
// not depend on how many ranks share the micro-batches. Each element is added by itself, so neither thread count nor
// the cuts between ranks matter. T is float or double.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "comm/group.h"
#include "core/timeline.h"
#include "core/tree_sum.h"
#include "parallel/aligned_buffer.h"
#include "parallel/shards.h"

namespace conclave::parallel {

// Whether the tree over `micro_batches` can be cut at the ranks' borders: each rank's share must be a power of two,
// unless one rank has all.
bool tree_fits(int64_t micro_batches, int64_t dp);

// Sets all of `data` to zero, with as many threads as OpenMP has.
template <typename T>
void fill_zero(std::span<T> data);

// The subtree of one rank's consecutive micro-batches: a binary counter of buffers, 1 + floor(log2 n) of them for n
// micro-batches, kept from step to step.
template <typename T>
class TreeAccumulator {
 public:
  explicit TreeAccumulator(int64_t elements) : elements_(elements) {}

  void begin();
  // The buffer of a micro-batch under way, the `ahead`-th after the next one to be pushed: zero at first, good until
  // its push().
  std::span<T> current(int64_t ahead = 0);
  // The first micro-batch under way is done: its gradient joins the tree.
  void push();
  // Nobody adds to the elements from `begin` on any more, in any micro-batch under way, and no other one will begin:
  // from there to where the last call began they become their sum in the buffer that is returned, which finish() will
  // return too.
  std::span<T> sum_from(int64_t begin);
  // The sum of all that were pushed since begin(), at least one; once, good until begin().
  std::span<T> finish();

  int64_t pushed() const { return pushed_; }
  int64_t under_way() const { return std::ssize(open_); }
  int64_t buffers() const { return std::ssize(buffers_); }

 private:
  static constexpr int kNone = -1;
  // levels[j]: the buffer with the sum of a finished block of 2^j, or kNone.
  using Levels = std::vector<int>;
  struct Elements {
    int64_t begin, end;
  };
  int acquire();
  // A micro-batch's buffer joins the tree, as far as `part` goes. Returns the buffers that are free then.
  std::vector<int> carry(Levels& levels, int own, Elements part);
  // What is left of the tree becomes its sum in the buffer that is returned.
  int fold(const Levels& levels, Elements part);
  void add_in(int to, int from, Elements part);

  int64_t elements_;
  int64_t pushed_ = 0;
  int64_t summed_ = 0;  // from here on sum_from() was there
  std::vector<AlignedBuffer<T>> buffers_;
  std::vector<int> free_;
  Levels levels_;
  std::vector<int> open_;  // of the micro-batches under way, in order
};

// The leaves of a tree over (rank, subtree) in the order in which they are added; leaf = rank * subtrees + subtree.
// Empty = as they are numbered.
using LeafOrder = std::vector<int64_t>;

// Sums subtrees over the ranks of a group, on the tree over (rank, subtree of that rank): rank 0's subtrees come first.
// Another order may be given. The subtrees of a rank stand for equally many micro-batches. It goes bucket by bucket:
// the parts of a bucket go to the ranks and are summed there, while the caller computes; who wants more than its part
// has the others' gathered.
template <typename T>
class TreeReduce {
 public:
  struct Plan {
    Shards parts;            // which of the ranks that hold copies sums what
    bool everywhere = true;  // every rank wants all sums; else its part
    int subtrees = 1;        // of a rank
    LeafOrder order = {};
    // What ranks bring travels as bf16, that of the summing rank rounded alike, so that the sums do not depend on who
    // makes them; they are made in T (MegaScale-MoE, arXiv 2505.11432: one rounding for each rank, none on the way).
    bool as_bf16 = false;
    Timeline* timeline = nullptr;         // outlives the sum; buckets show on its track of exchanges
    std::vector<std::string> names = {};  // of the buckets, for the timeline
  };
  explicit TreeReduce(Plan plan);
  // Starts the sum of one bucket; every bucket once, in the same order on every rank. Every span holds all elements,
  // and nobody touches the bucket's until finish(). May wait for the bucket that was started kBucketsUnderWay before.
  // Collective.
  void start(size_t bucket, std::span<const std::span<T>> subtrees);
  // Starts the other buckets, the last one first, and waits for all. Returns the sums this rank wants, those of its
  // part one after another: they lie in subtrees[0], from its beginning on; everything else is scratch afterwards.
  // Collective.
  std::span<T> finish(std::span<const std::span<T>> subtrees);

 private:
  struct Exchange {
    size_t bucket;
    std::span<T> whole;  // subtrees[0]
    int64_t began = 0;
    std::vector<T*> received = {};                  // leaves, rank by rank, each with its subtrees
    std::vector<uint16_t> sent = {}, arrived = {};  // as bf16
    std::vector<comm::Work> works = {};
  };
  struct Gather {
    size_t bucket;
    comm::Work work;
    int64_t began = 0;
  };

  void exchange(size_t bucket, std::span<T* const> travelling, std::span<T> whole);
  // Starts to bring the bucket's elements of each travelling buffer to their owners; this rank's arrive at `to`.
  template <typename N>
  void send(Exchange& exchange, std::span<N* const> travelling, N* to);
  void send_as_bf16(Exchange& exchange, std::span<T* const> travelling);
  void widen(const Exchange& exchange) const;
  void finish_exchange();
  std::vector<T*> ordered(const std::vector<T*>& leaves) const;
  int64_t now() const { return plan_.timeline != nullptr && plan_.timeline->on() ? plan_.timeline->now() : 0; }
  void record(size_t bucket, const char* phase, int64_t began);

  Plan plan_;
  bool folds_first_ = true;  // a rank's subtrees are one subtree of the tree
  std::vector<bool> started_;
  std::vector<AlignedBuffer<T>> received_;  // in turns
  size_t next_received_ = 0;
  std::deque<Exchange> exchanges_;
  std::deque<Gather> gathers_;
};

}  // namespace conclave::parallel
