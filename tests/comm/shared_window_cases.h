// SPDX-License-Identifier: Apache-2.0
// What a shared window has to do: cases that run over threads in base_tests and over processes in launched_tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <numeric>

#include "comm/group_conformance.h"
#include "comm/shared_window.h"

namespace conclave::test {

inline void shares_memory_that_is_zero_at_first(const comm::Group& group) {
  const int n = group.size();
  const auto memory = group.share(100 * n);
  group.barrier();
  for (int r = 0; r < n; ++r) {
    ASSERT_EQ(memory->region(r).size(), 100u * n);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->region(r).data()) % 64, 0u);
    EXPECT_EQ(memory->region(r)[100 * group.rank() + 99], std::byte{0});
    memory->region(r)[100 * group.rank()] = static_cast<std::byte>(1 + group.rank());
  }
  group.barrier();
  for (int r = 0; r < n; ++r)
    EXPECT_EQ(memory->region(group.rank())[100 * r], static_cast<std::byte>(1 + r)) << "from rank " << r;
  group.barrier();
}

// How many numbers `from` writes for `to` in a round: uneven, growing, and often none.
inline int64_t window_piece(int round, int from, int to) { return piece_size(from + round, to) * (1 + round % 5); }

struct WindowRound {
  int number;
  comm::SharedWindow::Turn turn;
};

// Every rank writes its pieces into the blocks of the others.
inline WindowRound push(const comm::Group& group, const comm::SharedWindow& window, int number) {
  int64_t expected = 0;
  for (int r = 0; r < group.size(); ++r) expected += window_piece(number, r, group.rank());
  const int64_t bytes = expected * static_cast<int64_t>(sizeof(int64_t));
  WindowRound round{number, window.open(window.allocate(bytes), bytes)};
  window.meet(round.turn);
  for (int to = 0; to < group.size(); ++to) {
    auto* place = reinterpret_cast<int64_t*>(round.turn.blocks[to]);
    for (int r = 0; r < group.rank(); ++r) place += window_piece(number, r, to);
    for (int64_t i = 0; i < window_piece(number, group.rank(), to); ++i)
      place[i] = piece_value(number, group.rank(), to, i);
  }
  window.written(round.turn);
  return round;
}

inline void expect_pushed(const comm::Group& group, const comm::SharedWindow& window, const WindowRound& round) {
  window.await(round.turn);
  window.close(round.turn);
  const auto* place = reinterpret_cast<const int64_t*>(round.turn.own->data());
  for (int from = 0; from < group.size(); ++from)
    for (int64_t i = 0; i < window_piece(round.number, from, group.rank()); ++i)
      ASSERT_EQ(*place++, piece_value(round.number, from, group.rank(), i)) << "round " << round.number;
}

inline void pushes_into_the_blocks_of_others(const comm::Group& group) {
  const comm::SharedWindow window(group);
  for (int round = 0; round < 20; ++round) expect_pushed(group, window, push(group, window, round));
}

inline void keeps_many_turns_apart(const comm::Group& group) {
  const comm::SharedWindow window(group);
  std::deque<WindowRound> rounds;
  for (int round = 0; round < 3 * comm::SharedWindow::kTurns; ++round) {
    rounds.push_back(push(group, window, round));
    if (round < comm::SharedWindow::kTurns / 2) continue;
    expect_pushed(group, window, rounds.front());
    rounds.pop_front();
  }
  for (const auto& round : rounds) expect_pushed(group, window, round);
}

// What others may still read is not used again, whatever its owner does next.
inline void leaves_blocks_alone_until_all_have_read(const comm::Group& group) {
  const comm::SharedWindow window(group);
  constexpr int64_t kNumbers = 3000;
  for (int round = 0; round < 60; ++round) {
    const int64_t bytes = kNumbers * static_cast<int64_t>(sizeof(int64_t));
    comm::SharedWindow::Turn turn;
    {
      const auto block = window.allocate(bytes);
      turn = window.open(block, bytes);
      const bool lacked = !turn.own;
      if (lacked) window.meet(turn);
      auto* mine = reinterpret_cast<int64_t*>(turn.own->data());
      for (int64_t i = 0; i < kNumbers; ++i) mine[i] = piece_value(round, group.rank(), 0, i);
      window.written(turn);
      if (!lacked) window.meet(turn);
    }
    turn.own.reset();  // the owner has no more use for it
    window.await(turn);
    for (int r = 0; r < group.size(); ++r) {
      const int from = (group.rank() + r) % group.size();
      const auto* theirs = reinterpret_cast<const int64_t*>(turn.blocks[from]);
      for (int64_t i = 0; i < kNumbers; ++i) ASSERT_EQ(theirs[i], piece_value(round, from, 0, i)) << "round " << round;
    }
    window.close(turn);
    // Scribbles over whatever it is given.
    if (const auto other = window.allocate(bytes)) std::memset(other->data(), 0xee, bytes);
  }
}

inline void stops_growing(const comm::Group& group) {
  const comm::SharedWindow window(group);
  int64_t settled = 0;
  for (int round = 0; round < 200; ++round) {
    expect_pushed(group, window, push(group, window, round));
    if (round == 100) settled = window.bytes();
  }
  EXPECT_EQ(window.bytes(), settled);
  int64_t most = 0;
  for (int round = 0; round < 200; ++round) {
    int64_t numbers = 0;
    for (int r = 0; r < group.size(); ++r) numbers += window_piece(round, r, group.rank());
    most = std::max(most, numbers * int64_t{8});
  }
  std::vector<int64_t> largest{most};
  group.all_reduce(std::span<int64_t>(largest), comm::Reduce::kMax);
  EXPECT_LE(window.bytes(), (int64_t{1} << 20) + 4 * largest[0]);
}

inline void grows_for_what_found_no_room(const comm::Group& group) {
  const comm::SharedWindow window(group);
  const int64_t bytes = int64_t{3} << 20;
  // One rank wants more; all grow, and its next try succeeds.
  const bool wants = group.rank() == 0;
  EXPECT_FALSE(wants ? window.allocate_or_grow_later(bytes) : window.allocate(bytes));
  auto turn = window.open(nullptr, 64);
  window.meet(turn);
  EXPECT_GE(window.bytes(), bytes);
  const int64_t grown = window.bytes();
  window.written(turn);
  window.await(turn);
  window.close(turn);
  turn.own.reset();
  group.barrier();
  const auto block = window.allocate_or_grow_later(bytes);
  EXPECT_TRUE(block);
  auto next = window.open(block, bytes);
  window.meet(next);
  EXPECT_EQ(window.bytes(), grown);
  window.close(next);
  group.barrier();
}

inline void joins_holes_that_touch(const comm::Group& group) {
  const comm::SharedWindow window(group);
  const int64_t third = int64_t{1} << 18;
  comm::SharedWindow::Turn turn = window.open(nullptr, 3 * third);
  window.meet(turn);
  window.written(turn);
  window.await(turn);
  window.close(turn);
  turn.own.reset();
  group.barrier();
  for (const std::vector<int>& order : {std::vector{0, 1, 2}, {2, 1, 0}, {0, 2, 1}, {1, 0, 2}}) {
    std::vector<std::shared_ptr<comm::SharedWindow::Block>> blocks;
    for (int i = 0; i < 3; ++i) blocks.push_back(window.allocate(third));
    for (const auto& block : blocks) ASSERT_TRUE(block);
    EXPECT_EQ(window.find(blocks[1]->data()), blocks[1]);
    EXPECT_EQ(window.find(blocks[1]->data() + 64), nullptr);
    for (const int i : order) blocks[i].reset();
    EXPECT_TRUE(window.allocate(3 * third)) << "the hole is whole again";
  }
  EXPECT_FALSE(window.allocate(window.bytes() + 1));
}

inline const std::vector<GroupCase>& shared_window_cases() {
  static const std::vector<GroupCase> cases = {
      {"SharesMemoryThatIsZeroAtFirst", shares_memory_that_is_zero_at_first},
      {"PushesIntoTheBlocksOfOthers", pushes_into_the_blocks_of_others},
      {"KeepsManyTurnsApart", keeps_many_turns_apart},
      {"LeavesBlocksAloneUntilAllHaveRead", leaves_blocks_alone_until_all_have_read},
      {"StopsGrowing", stops_growing},
      {"GrowsForWhatFoundNoRoom", grows_for_what_found_no_room},
      {"JoinsHolesThatTouch", joins_holes_that_touch},
  };
  return cases;
}

}  // namespace conclave::test
