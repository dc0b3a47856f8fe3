// SPDX-License-Identifier: Apache-2.0
#include "moe/auction.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <utility>

namespace conclave::moe {
namespace {

constexpr double kNothing = -std::numeric_limits<double>::infinity();

class Auction {
 public:
  Auction(std::span<const double> values_RE, int64_t columns)
      : values_(values_RE),
        E_(columns),
        capacity_((std::ssize(values_RE) / columns + columns - 1) / columns),
        holders_(columns),
        owned_(std::ssize(values_RE) / columns, -1) {}

  void bid(const AuctionRules& rules) {
    std::deque<int32_t> waiting(owned_.size());
    for (size_t r = 0; r < owned_.size(); ++r) waiting[r] = static_cast<int32_t>(r);
    for (int64_t bids = 0; !waiting.empty() && bids < rules.most_bids; ++bids) {
      const int32_t row = waiting.front();
      waiting.pop_front();
      if (const int32_t loser = bid_of(row, rules.epsilon); loser >= 0) waiting.push_back(loser);
    }
    for (const int32_t row : waiting) take_free(row);
  }
  std::vector<int32_t> result() const { return owned_; }

 private:
  using Bid = std::pair<double, int32_t>;  // price, row
  using Holders = std::priority_queue<Bid, std::vector<Bid>, std::greater<>>;

  bool full(int64_t e) const { return std::ssize(holders_[e]) >= capacity_; }
  // What the next one must outbid: the lowest price of a full column, nothing else.
  double price(int64_t e) const { return full(e) ? holders_[e].top().first : 0.0; }

  // Returns the row that lost its place, or -1.
  int32_t bid_of(int32_t row, double epsilon) {
    int64_t best = 0;
    double first = kNothing, second = kNothing;
    for (int64_t e = 0; e < E_; ++e) {
      const double worth = values_[row * E_ + e] - price(e);
      if (worth > first) {
        second = std::exchange(first, worth);
        best = e;
      } else {
        second = std::max(second, worth);
      }
    }
    const double raised = price(best) + (second == kNothing ? 0.0 : first - second) + epsilon;
    const int32_t loser = full(best) ? holders_[best].top().second : -1;
    if (loser >= 0) {
      holders_[best].pop();
      owned_[loser] = -1;
    }
    holders_[best].push({raised, row});
    owned_[row] = static_cast<int32_t>(best);
    return loser;
  }
  void take_free(int32_t row) {
    int32_t best = -1;
    for (int32_t e = 0; e < E_; ++e)
      if (!full(e) && (best < 0 || values_[row * E_ + e] > values_[row * E_ + best])) best = e;
    holders_[best].push({0.0, row});
    owned_[row] = best;
  }

  std::span<const double> values_;
  int64_t E_, capacity_;
  std::vector<Holders> holders_;  // of each column
  std::vector<int32_t> owned_;    // column of each row
};

}  // namespace

std::vector<int32_t> balanced_assignment(std::span<const double> values_RE, int64_t columns,
                                         const AuctionRules& rules) {
  Auction auction(values_RE, columns);
  auction.bid(rules);
  return auction.result();
}

}  // namespace conclave::moe
