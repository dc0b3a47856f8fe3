// SPDX-License-Identifier: Apache-2.0
// Tables of hash layers that look at frequencies or embeddings (methods.md 1.12).
#include "moe/hash_tables.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "moe/causality.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

constexpr int64_t kVocab = 1000;

// Natural text: the r-th most frequent id occurs 1/r as often as the first; ids in a drawn order, the last tenth never.
std::vector<int64_t> zipf_counts(uint64_t seed) {
  std::vector<int64_t> ids(kVocab), counts(kVocab, 0);
  std::iota(ids.begin(), ids.end(), 0);
  const Random random(seed, Purpose::kTest);
  std::stable_sort(ids.begin(), ids.end(), [&](int64_t a, int64_t b) { return random.bits(a) < random.bits(b); });
  for (int64_t r = 0; r < kVocab * 9 / 10; ++r) counts[ids[r]] = 50000 / (r + 1);
  return counts;
}

std::vector<int64_t> loads(const std::vector<int64_t>& table, const std::vector<int64_t>& counts,
                           const TableShape& shape) {
  std::vector<int64_t> load(shape.experts, 0);
  for (size_t i = 0; i < table.size(); ++i) load[table[i]] += counts[i / shape.top_k];
  return load;
}

int64_t spread(const std::vector<int64_t>& values) {
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  return *most - *least;
}

// Rows have different experts of the layer.
void expect_rows(const std::vector<int64_t>& table, const TableShape& shape) {
  ASSERT_EQ(std::ssize(table), shape.vocab * shape.top_k);
  for (int64_t id = 0; id < shape.vocab; ++id) {
    const std::set<int64_t> row(table.begin() + id * shape.top_k, table.begin() + (id + 1) * shape.top_k);
    EXPECT_EQ(std::ssize(row), shape.top_k) << id;
    EXPECT_GE(*row.begin(), 0);
    EXPECT_LT(*row.rbegin(), shape.experts);
  }
}

TEST(HashTables, BalancedIsWithinOneMostFrequentIdOfEvenAndBelowTheOthers) {
  for (const auto& [experts, k] : std::vector<std::pair<int64_t, int64_t>>{{8, 1}, {8, 2}, {7, 3}, {64, 1}, {1, 1}}) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const TableShape shape{kVocab, experts, k};
      const auto counts = zipf_counts(seed);
      const auto table = balanced_table(counts, shape);
      expect_rows(table, shape);
      const auto load = loads(table, counts, shape);
      EXPECT_LE(spread(load), *std::max_element(counts.begin(), counts.end())) << experts << " " << k;
      EXPECT_EQ(balanced_table(counts, shape), table);
      if (experts == 1) continue;
      EXPECT_LT(spread(load), spread(loads(modulo_table(shape), counts, shape))) << experts << " " << k;
      RouterConfig random{.type = "hash"};
      random.hash.emplace().table = HashTable::kRandom;
      const testing::Routed drawn(random, {.experts = experts, .top_k = k, .vocab = kVocab, .seed = seed}, 1);
      const auto entries = drawn.state.values<int64_t>("hash_table");
      EXPECT_LT(spread(load), spread(loads({entries.begin(), entries.end()}, counts, shape))) << experts << " " << k;
    }
  }
}

TEST(HashTables, OfWhatIsLeftAfterTheMostFrequentBalancedIsEven) {
  // No id above a share: the greedy order then evens out to the size of the rarest ids.
  std::vector<int64_t> counts;
  for (int64_t i = 0; i < 400; ++i) counts.push_back(1 + 3 * i);
  const TableShape shape{400, 8, 1};
  EXPECT_LE(spread(loads(balanced_table(counts, shape), counts, shape)), 4);
}

TEST(HashTables, IdsThatWereNeverSeenAreSpreadEvenly) {
  for (const int64_t k : {1, 3}) {
    const TableShape shape{kVocab, 8, k};
    const auto counts = zipf_counts(3);
    const auto table = balanced_table(counts, shape);
    std::vector<int64_t> unseen(shape.experts, 0);
    for (size_t i = 0; i < table.size(); ++i) unseen[table[i]] += counts[i / k] == 0;
    EXPECT_EQ(std::accumulate(unseen.begin(), unseen.end(), int64_t{0}), k * kVocab / 10);
    EXPECT_LE(spread(unseen), 1);
    EXPECT_EQ(balanced_table(std::vector<int64_t>(kVocab, 0), shape), modulo_table(shape)) << "nothing was counted";
  }
}

TEST(HashTables, TiesGoToTheLowerIdAndTheLowerExpert) {
  EXPECT_EQ(balanced_table(std::vector<int64_t>{5, 5, 5, 9, 1}, {5, 3, 1}), (std::vector<int64_t>{1, 2, 1, 0, 2}));
}

// 6 groups of ids far apart, of different sizes, in a drawn order.
struct Planted {
  int64_t groups = 6, dimensions = 5;
  std::vector<float> points;
  std::vector<int64_t> group;

  explicit Planted(uint64_t seed) {
    const Random random(seed, Purpose::kTest);
    for (int64_t id = 0; id < 240; ++id) {
      group.push_back(id < groups ? id : static_cast<int64_t>(random.uniform(id) * random.uniform(id + 1000) * 6));
      for (int64_t d = 0; d < dimensions; ++d)
        points.push_back(static_cast<float>(20 * random.normal(5000 + group[id] * dimensions + d) +
                                            random.normal(9000 + id * dimensions + d)));
    }
  }
};

Clusters found(const Planted& planted, uint64_t seed) {
  return k_means(planted.points, planted.dimensions, planted.groups, Random(seed, Purpose::kHashTable, "k-means"));
}

TEST(HashTables, ClusteredSendsTheIdsOfAPlantedClusterToOneExpert) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    const Planted planted(seed);
    for (const int64_t k : {1, 2}) {
      const TableShape shape{240, planted.groups, k};
      const auto table = clustered_table(found(planted, seed), shape);
      expect_rows(table, shape);
      std::map<int64_t, std::vector<int64_t>> rows;
      std::set<int64_t> firsts;
      for (int64_t id = 0; id < shape.vocab; ++id) {
        const std::vector<int64_t> row(table.begin() + id * k, table.begin() + (id + 1) * k);
        EXPECT_EQ(rows.try_emplace(planted.group[id], row).first->second, row) << "seed " << seed << " id " << id;
      }
      for (const auto& [group, row] : rows) firsts.insert(row[0]);
      EXPECT_EQ(firsts.size(), rows.size()) << "two clusters have one expert, seed " << seed;
    }
  }
}

TEST(HashTables, DispersedSeparatesTheIdsOfACluster) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    const Planted planted(seed);
    for (const int64_t k : {1, 2}) {
      const TableShape shape{240, planted.groups, k};
      const auto table = dispersed_table(found(planted, seed), shape);
      expect_rows(table, shape);
      std::vector<int64_t> all(shape.experts, 0);
      std::map<int64_t, std::vector<int64_t>> of_group;
      for (size_t i = 0; i < table.size(); ++i) {
        ++all[table[i]];
        ++of_group.try_emplace(planted.group[i / k], shape.experts, 0).first->second[table[i]];
      }
      EXPECT_LE(spread(all), 1);
      for (const auto& [group, counts] : of_group)
        EXPECT_LE(spread(counts), 1) << "seed " << seed << " group " << group;
    }
  }
}

TEST(HashTables, TheClassOfAHashRouterIsThatOfItsFeature) {
  RouterConfig config{.type = "hash"};
  EXPECT_EQ(causality_of(config), Causality::kTokenLocal);
  config.hash.emplace().feature = HashFeature::kPrevious;
  EXPECT_EQ(causality_of(config), Causality::kPositionCausal);
  EXPECT_EQ(class_text(Router::find("hash")->info), "C0, C1 with feature: previous");
  RouterConfig lory{.type = "lory"};
  EXPECT_EQ(causality_of(lory), Causality::kPositionCausal);
  lory.lory.emplace().first = FirstSegment::kOwn;
  EXPECT_EQ(causality_of(lory), Causality::kLeaky);
  EXPECT_EQ(class_text(Router::find("topk")->info), "C0");
}

}  // namespace
}  // namespace conclave::moe
