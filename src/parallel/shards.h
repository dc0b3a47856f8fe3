// SPDX-License-Identifier: Apache-2.0
// Who owns which elements of a flat buffer that several ranks hold copies of: consecutive shards, one for each rank of
// a group, or all of it for every rank. An owner sums the gradients of its elements, keeps their optimizer state and
// updates them (ZeRO stage 1, Rajbhandari et al. 2020). Holds no data.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/group.h"

namespace conclave::parallel {

class Shards {
 public:
  // Not sharded: every rank owns all of `elements`. gather() does nothing.
  explicit Shards(int64_t elements);
  // Rank r of `group` owns [cuts[r], cuts[r + 1]), which may be empty. cuts[0] is 0, the last one the number of
  // elements.
  Shards(const comm::Group& group, std::vector<int64_t> cuts);

  const comm::Group& group() const { return group_; }
  const std::vector<int64_t>& cuts() const { return cuts_; }
  int64_t elements() const { return cuts_.back(); }
  // This rank's.
  int64_t begin() const { return cuts_[group_.rank()]; }
  int64_t end() const { return cuts_[group_.rank() + 1]; }
  int64_t count() const { return end() - begin(); }

  template <typename T>
  std::span<T> own(std::span<T> whole) const {
    return whole.subspan(begin(), count());
  }
  // Collective over group(). Every rank's own elements of `whole` go to all.
  template <typename T>
  void gather(std::span<T> whole) const {
    group_.all_gather_v(std::span<const T>(own(whole)), whole, std::span<const int64_t>(counts_));
  }

 private:
  comm::Group group_;
  std::vector<int64_t> cuts_;
  std::vector<int64_t> counts_;  // by rank
};

// Cuts of `elements` into `ranks` shards, each at the place nearest to an even division. `places` are where a cut may
// be, ascending; 0 and `elements` always may. With fewer places than ranks some shards are empty.
std::vector<int64_t> cuts_at(std::span<const int64_t> places, int64_t elements, int ranks);

}  // namespace conclave::parallel
