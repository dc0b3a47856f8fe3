// SPDX-License-Identifier: Apache-2.0
// Who owns which elements of a flat buffer that several ranks hold copies of: the buffer is consecutive buckets, and
// each bucket consecutive shards, one for each rank of a group; or every rank owns all of it. An owner sums the
// gradients of its elements, keeps their optimizer state and updates them (ZeRO stage 1, Rajbhandari et al. 2020). A
// bucket is what travels at a time, so every rank has a part in each (decision 13). Holds no data.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/group.h"

namespace conclave::parallel {

// So many buckets travel at a time: the link is busy while one is being added. More would take memory and, sharing the
// links, hold up the first ones, which are waited for.
inline constexpr size_t kBucketsUnderWay = 3;

// Elements of the buffer, and where they are among those that their owner owns, put one after another.
struct OwnedRange {
  int64_t begin = 0, count = 0, at = 0;
  int64_t end() const { return begin + count; }
};

class Shards {
 public:
  using Cuts = std::vector<int64_t>;

  // Not sharded, one bucket: every rank owns all of `elements`. gather() does nothing.
  explicit Shards(int64_t elements);
  // Rank r of `group` owns [cuts[r], cuts[r + 1]) of each bucket, which may be empty. The first bucket begins at 0,
  // every other one where the last one ends.
  Shards(const comm::Group& group, std::vector<Cuts> buckets);

  const comm::Group& group() const { return group_; }
  const std::vector<Cuts>& buckets() const { return buckets_; }
  int64_t elements() const { return buckets_.back().back(); }
  // This rank's range in a bucket.
  const OwnedRange& own(size_t bucket) const { return own_[bucket]; }
  const std::vector<OwnedRange>& own() const { return own_; }  // one for each bucket
  int64_t count() const { return own_.back().at + own_.back().count; }
  // Those of any rank.
  std::vector<OwnedRange> ranges_of(int rank) const;

  // Brings every owner's elements of a bucket of `whole` to all. Collective over group(); until the work is finished
  // nobody touches that bucket.
  template <typename T>
  comm::Work start_gather(size_t bucket, std::span<T> whole) const {
    return start_gather_bytes(bucket, std::as_writable_bytes(whole), sizeof(T));
  }
  // The same for all buckets. Collective.
  template <typename T>
  void gather(std::span<T> whole) const {
    for (size_t b = 0; b < buckets_.size(); ++b) start_gather(b, whole).finish();
  }

 private:
  comm::Work start_gather_bytes(size_t bucket, std::span<std::byte> whole, size_t item) const;

  comm::Group group_;
  std::vector<Cuts> buckets_;
  std::vector<OwnedRange> own_;
};

// Cuts of `elements` into `ranks` shards, each at the place nearest to an even division. `places` are where a cut may
// be, ascending; 0 and `elements` always may. With fewer places than ranks some shards are empty.
std::vector<int64_t> cuts_at(std::span<const int64_t> places, int64_t elements, int ranks);

// Cuts bucket after bucket so that ranks own as much as each other of all so far, as nearly as places allow: who has
// had more than its share of the earlier ones gets nothing of the next.
class EvenCuts {
 public:
  explicit EvenCuts(int ranks) : owned_(ranks, 0) {}
  std::vector<int64_t> next(std::span<const int64_t> places, int64_t elements);

 private:
  std::vector<int64_t> owned_;  // by rank
  int64_t all_ = 0;
};

}  // namespace conclave::parallel
