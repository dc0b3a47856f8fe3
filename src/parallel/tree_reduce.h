// SPDX-License-Identifier: Apache-2.0
// Sums of whole gradient buffers on the tree of core/tree_sum.h over the global micro-batch index, so that the bits do
// not depend on how many ranks share the micro-batches. Each element is added by itself, so neither thread count nor
// the cuts between ranks matter. T is float or double.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/group.h"
#include "core/tree_sum.h"
#include "parallel/aligned_buffer.h"
#include "parallel/shards.h"

namespace conclave::parallel {

// Whether the tree over `micro_batches` can be cut at the ranks' borders: each rank's share must be a power of two,
// unless one rank has all.
bool tree_fits(int64_t micro_batches, int64_t dp);

// Cuts of `elements` into `ranks` consecutive slices: ranks + 1 offsets, at multiples of 64 Ki elements when there are
// enough of them for every rank, otherwise of 16. Late slices may be shorter or empty.
std::vector<int64_t> slice_cuts(int64_t elements, int ranks);

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
  // The sum of all that were pushed since begin(), at least one; once, good until begin().
  std::span<T> finish();

  int64_t pushed() const { return pushed_; }
  int64_t buffers() const { return std::ssize(buffers_); }

 private:
  static constexpr int kNone = -1;
  int acquire();

  int64_t elements_;
  int64_t pushed_ = 0;
  std::vector<AlignedBuffer<T>> buffers_;
  std::vector<int> free_;
  std::vector<int> levels_;  // levels_[j]: the buffer with the sum of a finished block of 2^j, or kNone
  std::vector<T*> parts_;    // of one addition
  std::vector<int> open_;    // of the micro-batches under way, in order
};

// The leaves of a tree over (rank, subtree) in the order in which they are added; leaf = rank * subtrees + subtree.
// Empty = as they are numbered.
using LeafOrder = std::vector<int64_t>;

// Sums subtrees over the ranks of a group, on the tree over (rank, subtree of that rank): rank 0's subtrees come first.
// Another order may be given. The subtrees of a rank stand for equally many micro-batches. Parts go to the ranks and
// are summed there; who wants more than its part has the others' gathered. Parts travel in rounds, so the memory for
// them is bounded.
template <typename T>
class TreeReduce {
 public:
  static constexpr int64_t kRound = 1 << 20;

  // `group` are the ranks that hold copies, `wanted` what each needs the sum of: shards over the same group, or all.
  // `round`: about so many elements are exchanged at a time.
  TreeReduce(const comm::Group& group, const Shards& wanted, int subtrees_per_rank, LeafOrder order = {},
             int64_t round = kRound);
  // Collective. Every span holds wanted.elements(). Returns the sum of this rank's wanted elements, which lies in its
  // place in subtrees[0]; everything else is scratch afterwards.
  std::span<T> run(std::span<const std::span<T>> subtrees);

 private:
  void exchange(std::span<T* const> travelling, int64_t first);
  std::vector<T*> ordered(const std::vector<T*>& leaves) const;

  comm::Group group_;
  Shards wanted_;
  Shards parts_;  // which rank sums what
  int subtrees_per_rank_;
  LeafOrder order_;
  bool folds_first_ = true;           // a rank's subtrees are one subtree of the tree
  int64_t longest_ = 0;               // part
  int64_t round_ = 0;                 // elements of each part in a round
  AlignedBuffer<T> sent_, received_;  // [rank][subtree][elements of the round]
};

}  // namespace conclave::parallel
