// SPDX-License-Identifier: Apache-2.0
#include "parallel/shards.h"

#include <algorithm>
#include <memory>

#include "core/error.h"

namespace conclave::parallel {

Shards::Shards(int64_t elements) : Shards(comm::Group(), {{0, elements}}) {}

Shards::Shards(const comm::Group& group, std::vector<Cuts> buckets) : group_(group), buckets_(std::move(buckets)) {
  check(!buckets_.empty(), "a buffer is at least one bucket");
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Cuts& cuts = buckets_[b];
    check(std::ssize(cuts) == group_.size() + 1 && std::is_sorted(cuts.begin(), cuts.end()) &&
              cuts.front() == (b == 0 ? 0 : buckets_[b - 1].back()),
          "one shard for each rank, bucket after bucket from the first element to the last");
  }
  own_ = ranges_of(group_.rank());
}

std::vector<OwnedRange> Shards::ranges_of(int rank) const {
  std::vector<OwnedRange> ranges;
  int64_t at = 0;
  for (const Cuts& cuts : buckets_) {
    ranges.push_back({cuts[rank], cuts[rank + 1] - cuts[rank], at});
    at += ranges.back().count;
  }
  return ranges;
}

// One exchange for each distance between ranks, from and to the elements' own places: nothing is copied.
comm::Work Shards::start_gather_bytes(size_t bucket, std::span<std::byte> whole, size_t item) const {
  const Cuts& cuts = buckets_[bucket];
  const int ranks = group_.size(), rank = group_.rank();
  const auto part = [&](int r) { return whole.subspan(cuts[r] * item, (cuts[r + 1] - cuts[r]) * item); };
  const auto works = std::make_shared<std::vector<comm::Work>>();
  for (int distance = 1; distance < ranks; ++distance) {
    const int to = (rank + distance) % ranks, from = (rank - distance + ranks) % ranks;
    std::vector<int64_t> sent(ranks, 0), received(ranks, 0);
    sent[to] = std::ssize(part(rank));
    received[from] = std::ssize(part(from));
    works->push_back(group_.start_all_to_all_v(std::span<const std::byte>(part(rank)), std::span<const int64_t>(sent),
                                               part(from), std::span<const int64_t>(received)));
  }
  return comm::Work([works] {
    for (comm::Work& work : *works) work.finish();
  });
}

namespace {

// The place nearest to `wish`; the one above of two that are equally near.
int64_t nearest_place(std::span<const int64_t> places, int64_t elements, int64_t wish) {
  const auto next = std::lower_bound(places.begin(), places.end(), wish);
  const int64_t above = next == places.end() ? elements : std::min(*next, elements);
  const int64_t below = next == places.begin() ? 0 : *(next - 1);
  return wish - below < above - wish ? below : above;
}

}  // namespace

std::vector<int64_t> cuts_at(std::span<const int64_t> places, int64_t elements, int ranks) {
  return EvenCuts(ranks).next(places, elements);
}

std::vector<int64_t> EvenCuts::next(std::span<const int64_t> places, int64_t elements) {
  const int64_t ranks = std::ssize(owned_);
  all_ += elements;
  std::vector<double> wanted;  // by the ranks up to each
  for (const int64_t owned : owned_) {
    const double want =
        std::max(0.0, static_cast<double>(all_) / static_cast<double>(ranks) - static_cast<double>(owned));
    wanted.push_back(want + (wanted.empty() ? 0.0 : wanted.back()));
  }
  std::vector<int64_t> cuts{0};
  for (int64_t r = 0; r + 1 < ranks; ++r) {
    const double share = wanted.back() > 0 ? wanted[r] / wanted.back() : 0.0;
    cuts.push_back(nearest_place(places, elements, static_cast<int64_t>(share * static_cast<double>(elements))));
  }
  cuts.push_back(elements);
  for (int64_t r = 0; r < ranks; ++r) owned_[r] += cuts[r + 1] - cuts[r];
  return cuts;
}

}  // namespace conclave::parallel
