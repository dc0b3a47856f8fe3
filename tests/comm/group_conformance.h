// SPDX-License-Identifier: Apache-2.0
// What every transport has to do: one list of cases, run over threads in base_tests and over processes in
// launched_tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "comm/group.h"

namespace conclave::test {

struct GroupCase {
  const char* name;
  void (*run)(const comm::Group&);
};

inline int64_t sum_of(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

// How many elements `from` sends to `to`: uneven, and often none.
inline int64_t piece_size(int from, int to) { return (from * 5 + to * 3) % 4 * 1000 + (from == to ? 0 : to % 2); }

// What element `i` of the piece from `from` to `to` holds in `round`.
inline int64_t piece_value(int round, int from, int to, int64_t i) {
  return ((static_cast<int64_t>(round) * 64 + from) * 64 + to) * 100000 + i;
}

struct Traffic {
  std::vector<int64_t> send_counts, recv_counts, send, recv;
};

inline Traffic make_traffic(const comm::Group& group, int round) {
  Traffic traffic;
  for (int r = 0; r < group.size(); ++r) {
    traffic.send_counts.push_back(piece_size(group.rank() + round, r + round));
    traffic.recv_counts.push_back(piece_size(r + round, group.rank() + round));
    for (int64_t i = 0; i < traffic.send_counts.back(); ++i)
      traffic.send.push_back(piece_value(round, group.rank(), r, i));
  }
  traffic.recv.assign(sum_of(traffic.recv_counts), -1);
  return traffic;
}

inline void expect_arrived(const comm::Group& group, int round, const Traffic& traffic) {
  std::vector<int64_t> expected;
  for (int r = 0; r < group.size(); ++r)
    for (int64_t i = 0; i < traffic.recv_counts[r]; ++i) expected.push_back(piece_value(round, r, group.rank(), i));
  EXPECT_EQ(traffic.recv, expected) << "round " << round << " on rank " << group.rank();
}

inline comm::Work start(const comm::Group& group, Traffic& traffic) {
  return group.start_all_to_all_v(std::span<const int64_t>(traffic.send), std::span<const int64_t>(traffic.send_counts),
                                  std::span<int64_t>(traffic.recv), std::span<const int64_t>(traffic.recv_counts));
}

inline void gathers_values_in_rank_order(const comm::Group& group) {
  std::vector<int> expected(group.size());
  std::iota(expected.begin(), expected.end(), 10);
  EXPECT_EQ(group.all_gather_value(10 + group.rank()), expected);
  std::vector<std::string> texts;
  for (int r = 0; r < group.size(); ++r) texts.push_back(std::string(r * 2, static_cast<char>('a' + r)));
  EXPECT_EQ(group.all_gather_text(texts[group.rank()]), texts) << "the first text is empty";
}

inline void gathers_uneven_pieces_in_place(const comm::Group& group) {
  std::vector<int64_t> counts;
  for (int r = 0; r < group.size(); ++r) counts.push_back(r % 3 * 700);
  std::vector<int32_t> all(sum_of(counts), -1);
  std::vector<int32_t> expected;
  for (int r = 0; r < group.size(); ++r) expected.insert(expected.end(), counts[r], r);
  const int64_t own = sum_of({counts.begin(), counts.begin() + group.rank()});
  std::fill_n(all.begin() + own, counts[group.rank()], group.rank());
  group.all_gather_v(std::span<const int32_t>(all).subspan(own, counts[group.rank()]), std::span<int32_t>(all),
                     std::span<const int64_t>(counts));
  EXPECT_EQ(all, expected);
}

inline void broadcasts_from_every_root(const comm::Group& group) {
  for (int root = 0; root < group.size(); ++root) {
    std::vector<double> data(5000, group.rank() == root ? root + 0.5 : -1.0);
    group.broadcast(std::span<double>(data), root);
    EXPECT_EQ(data, std::vector<double>(5000, root + 0.5));
    group.broadcast(std::span<double>(), root);
  }
}

template <typename T>
void expect_reductions(const comm::Group& group) {
  const int n = group.size();
  for (const int64_t elements : {0, 1, 3, 4099}) {
    const auto reduced = [&](comm::Reduce op) {
      std::vector<T> data(elements);
      for (int64_t i = 0; i < elements; ++i) data[i] = static_cast<T>((group.rank() + 1) * (i % 7) - 3);
      group.all_reduce(std::span<T>(data), op);
      return data;
    };
    const auto expected = [&](T factor, T offset) {
      std::vector<T> data(elements);
      for (int64_t i = 0; i < elements; ++i) data[i] = factor * static_cast<T>(i % 7) + offset;
      return data;
    };
    EXPECT_EQ(reduced(comm::Reduce::kSum), expected(n * (n + 1) / 2, -3 * n));
    EXPECT_EQ(reduced(comm::Reduce::kMin), expected(1, -3));
    EXPECT_EQ(reduced(comm::Reduce::kMax), expected(n, -3));
  }
}

inline void reduces_every_type_and_operation(const comm::Group& group) {
  expect_reductions<float>(group);
  expect_reductions<double>(group);
  expect_reductions<int32_t>(group);
  expect_reductions<int64_t>(group);
}

inline void reduces_to_the_same_bits_everywhere(const comm::Group& group) {
  std::vector<float> data(10007);
  for (size_t i = 0; i < data.size(); ++i) data[i] = 1.0f / (1.0f + i + 17.0f * group.rank());
  std::vector<float> again = data;
  group.all_reduce(std::span<float>(data));
  group.all_reduce(std::span<float>(again));
  EXPECT_EQ(data, again);
  std::vector<float> all(data.size() * group.size());
  group.all_gather(std::span<const float>(data), std::span<float>(all));
  for (int r = 0; r < group.size(); ++r)
    EXPECT_TRUE(std::equal(data.begin(), data.end(), all.begin() + r * data.size())) << "rank " << r;
}

inline void delivers_uneven_and_empty_pieces(const comm::Group& group) {
  for (int round = 0; round < 4; ++round) {
    Traffic traffic = make_traffic(group, round);
    start(group, traffic).finish();
    expect_arrived(group, round, traffic);
  }
}

inline void delivers_nothing_at_all(const comm::Group& group) {
  const std::vector<int64_t> none(group.size(), 0);
  group.all_to_all_v(std::span<const float>(), std::span<const int64_t>(none), std::span<float>(),
                     std::span<const int64_t>(none));
  group.all_to_all(std::span<const float>(), std::span<float>());
}

inline void keeps_many_works_apart(const comm::Group& group) {
  std::vector<Traffic> traffic;
  for (int round = 0; round < 40; ++round) traffic.push_back(make_traffic(group, round));
  std::vector<comm::Work> works;
  for (Traffic& one : traffic) works.push_back(start(group, one));
  // Other verbs may run while works are under way.
  EXPECT_EQ(group.all_gather_value(7), std::vector<int>(group.size(), 7));
  for (comm::Work& work : works) work.finish();
  for (int round = 0; round < 40; ++round) expect_arrived(group, round, traffic[round]);
}

inline void splits_by_color_and_key(const comm::Group& group) {
  // Groups of three and what is left, in reversed order.
  const comm::Group part = group.split(group.rank() / 3, -group.rank());
  const int first = group.rank() / 3 * 3;
  const int members = std::min(3, group.size() - first);
  ASSERT_EQ(part.size(), members);
  EXPECT_EQ(part.rank(), members - 1 - (group.rank() - first));
  std::vector<int> expected;
  for (int r = first + members - 1; r >= first; --r) expected.push_back(r);
  EXPECT_EQ(part.all_gather_value(group.rank()), expected);
  const comm::Group alone = part.split(part.rank(), 0);
  EXPECT_EQ(alone.size(), 1);
  for (int round = 0; round < 3; ++round) {
    Traffic traffic = make_traffic(part, round);
    comm::Work work = start(part, traffic);
    group.barrier();
    work.finish();
    expect_arrived(part, round, traffic);
  }
}

inline void carries_large_buffers(const comm::Group& group) {
  // Above 64 MiB on two ranks; more ranks need not fill the test machine's memory.
  const int64_t megabytes = group.size() <= 2 ? 66 : 8;
  const int64_t elements = (megabytes << 20) / static_cast<int64_t>(sizeof(int64_t)) / group.size();
  std::vector<int64_t> send, recv(elements * group.size(), -1);
  for (int r = 0; r < group.size(); ++r)
    for (int64_t i = 0; i < elements; ++i) send.push_back(piece_value(1, group.rank(), r, i));
  group.all_to_all(std::span<const int64_t>(send), std::span<int64_t>(recv));
  bool all_right = true;
  for (int r = 0; r < group.size(); ++r)
    for (int64_t i = 0; i < elements; ++i)
      all_right = all_right && recv[r * elements + i] == piece_value(1, r, group.rank(), i);
  EXPECT_TRUE(all_right);
  std::vector<int64_t> sum = recv;
  group.all_reduce(std::span<int64_t>(sum), comm::Reduce::kMax);
  bool all_largest = true;
  for (int r = 0; r < group.size(); ++r)
    for (int64_t i = 0; i < elements; ++i)
      all_largest = all_largest && sum[r * elements + i] == piece_value(1, r, group.size() - 1, i);
  EXPECT_TRUE(all_largest);
}

inline const std::vector<GroupCase>& group_cases() {
  static const std::vector<GroupCase> cases = {
      {"GathersValuesInRankOrder", gathers_values_in_rank_order},
      {"GathersUnevenPiecesInPlace", gathers_uneven_pieces_in_place},
      {"BroadcastsFromEveryRoot", broadcasts_from_every_root},
      {"ReducesEveryTypeAndOperation", reduces_every_type_and_operation},
      {"ReducesToTheSameBitsEverywhere", reduces_to_the_same_bits_everywhere},
      {"DeliversUnevenAndEmptyPieces", delivers_uneven_and_empty_pieces},
      {"DeliversNothingAtAll", delivers_nothing_at_all},
      {"KeepsManyWorksApart", keeps_many_works_apart},
      {"SplitsByColorAndKey", splits_by_color_and_key},
      {"CarriesLargeBuffers", carries_large_buffers},
  };
  return cases;
}

}  // namespace conclave::test
