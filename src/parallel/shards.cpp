// SPDX-License-Identifier: Apache-2.0
#include "parallel/shards.h"

#include <algorithm>

#include "core/error.h"

namespace conclave::parallel {

Shards::Shards(int64_t elements) : Shards(comm::Group(), {0, elements}) {}

Shards::Shards(const comm::Group& group, std::vector<int64_t> cuts) : group_(group), cuts_(std::move(cuts)) {
  check(std::ssize(cuts_) == group_.size() + 1 && cuts_.front() == 0 && std::is_sorted(cuts_.begin(), cuts_.end()),
        "one shard for each rank, from the first element to the last");
  for (int r = 0; r < group_.size(); ++r) counts_.push_back(cuts_[r + 1] - cuts_[r]);
}

std::vector<int64_t> cuts_at(std::span<const int64_t> places, int64_t elements, int ranks) {
  std::vector<int64_t> cuts{0};
  for (int r = 1; r < ranks; ++r) {
    const int64_t even = elements / ranks * r + elements % ranks * r / ranks;
    const auto next = std::lower_bound(places.begin(), places.end(), even);
    const int64_t above = next == places.end() ? elements : std::min(*next, elements);
    const int64_t below = next == places.begin() ? 0 : *(next - 1);
    cuts.push_back(even - below < above - even ? below : above);
  }
  cuts.push_back(elements);
  return cuts;
}

}  // namespace conclave::parallel
