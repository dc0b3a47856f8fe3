// SPDX-License-Identifier: Apache-2.0
#include "comm/shared_window.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>

#include "core/error.h"

namespace conclave::comm {
namespace {

// What one rank tells the others about one turn; a cache line. Turn t uses slot t % kTurns. The three numbers only
// grow.
struct alignas(64) Slot {
  uint64_t opened, written, closed;
  int64_t segment, offset, lacking;
};

constexpr int64_t kLeastGrowth = int64_t{1} << 20;

int64_t rounded(int64_t bytes) {
  bytes = std::max<int64_t>(bytes, 1);
  return (bytes + SharedWindow::kAlignment - 1) / SharedWindow::kAlignment * SharedWindow::kAlignment;
}

bool reached(uint64_t& number, int64_t turn) {
  return std::atomic_ref(number).load(std::memory_order_acquire) >= static_cast<uint64_t>(turn);
}

void tell(uint64_t& number, int64_t turn) {
  std::atomic_ref(number).store(static_cast<uint64_t>(turn), std::memory_order_release);
}

}  // namespace

struct SharedWindow::State {
  explicit State(const Group& ranks) : group(ranks), board(ranks.share(sizeof(Slot) * kTurns)) {}

  struct Segment {
    std::shared_ptr<SharedMemory> memory;
    std::map<int64_t, int64_t> free;  // of this rank's region: offset → bytes
  };
  // Dropped, but some rank may still read it.
  struct Leaving {
    int segment;
    int64_t offset, bytes, turn;
  };

  Slot& slot(int rank, int64_t turn) const {
    return reinterpret_cast<Slot*>(board->region(rank).data())[turn % kTurns];
  }
  bool all(uint64_t Slot::*number, int64_t turn) const {
    for (int r = 0; r < group.size(); ++r)
      if (!reached(slot(r, turn).*number, turn)) return false;
    return true;
  }
  void wait_for_all(uint64_t Slot::*number, int64_t turn) const {
    group.wait_until([this, number, turn] { return all(number, turn); });
  }

  void give_back(int segment, int64_t offset, int64_t bytes) {
    auto& free = segments[segment].free;
    auto next = free.lower_bound(offset);
    if (next != free.end() && offset + bytes == next->first) {
      bytes += next->second;
      next = free.erase(next);
    }
    if (next != free.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        before->second += bytes;
        return;
      }
    }
    free[offset] = bytes;
  }
  void reap() {
    std::erase_if(leaving, [&](const Leaving& block) {
      if (!all(&Slot::closed, block.turn)) return false;
      give_back(block.segment, block.offset, block.bytes);
      return true;
    });
  }
  // First fit from segment `first` on: segment and offset, or -1 where none fits.
  std::pair<int, int64_t> take(int64_t bytes, size_t first = 0) {
    for (size_t s = first; s < segments.size(); ++s) {
      auto& free = segments[s].free;
      for (auto hole = free.begin(); hole != free.end(); ++hole) {
        if (hole->second < bytes) continue;
        const auto [offset, size] = *hole;
        free.erase(hole);
        if (size > bytes) free[offset + bytes] = size - bytes;
        return {static_cast<int>(s), offset};
      }
    }
    return {-1, 0};
  }
  std::shared_ptr<Block> hand_out(std::shared_ptr<State> self, std::pair<int, int64_t> place, int64_t size) {
    auto block = std::make_shared<Block>(std::move(self), place.first, place.second, size);
    live[block->data()] = block;
    return block;
  }
  // The last turn of a dropped block that this rank has closed, and maybe not all; 0 = there is none.
  int64_t turn_to_wait_for() {
    const std::lock_guard lock(mutex);
    int64_t last = 0;
    for (const auto& block : leaving)
      if (reached(slot(group.rank(), block.turn).closed, block.turn)) last = std::max(last, block.turn);
    return last;
  }

  Group group;
  std::shared_ptr<SharedMemory> board;
  int64_t turns = 0;
  int64_t wanted = 0;        // to grow by with the next turn
  mutable std::mutex mutex;  // of what follows: a tensor may be dropped by another thread
  std::vector<Segment> segments;
  std::vector<Leaving> leaving;
  std::map<const std::byte*, std::weak_ptr<Block>> live;
  int64_t bytes = 0;
};

SharedWindow::Block::Block(std::shared_ptr<State> state, int segment, int64_t offset, int64_t bytes)
    : state_(std::move(state)),
      segment_(segment),
      offset_(offset),
      bytes_(bytes),
      data_(state_->segments[segment].memory->region(state_->group.rank()).data() + offset) {}

SharedWindow::Block::~Block() {
  const std::lock_guard lock(state_->mutex);
  state_->live.erase(data_);
  if (last_turn_ == 0) {
    state_->give_back(segment_, offset_, bytes_);
  } else {
    state_->leaving.push_back({segment_, offset_, bytes_, last_turn_});
  }
}

SharedWindow::SharedWindow(const Group& group) : state_(std::make_shared<State>(group)) {}

std::shared_ptr<SharedWindow::Block> SharedWindow::allocate(int64_t bytes) const {
  bytes = rounded(bytes);
  for (bool again : {true, false}) {
    {
      const std::lock_guard lock(state_->mutex);
      state_->reap();
      if (const auto place = state_->take(bytes); place.first >= 0) return state_->hand_out(state_, place, bytes);
    }
    // Space that only waits for others to catch up. They need nothing more of this rank for a turn that it has closed.
    const int64_t turn = again ? state_->turn_to_wait_for() : 0;
    if (turn == 0) break;
    state_->wait_for_all(&Slot::closed, turn);
  }
  return nullptr;
}

std::shared_ptr<SharedWindow::Block> SharedWindow::allocate_or_grow_later(int64_t bytes) const {
  auto block = allocate(bytes);
  if (!block) state_->wanted = std::max(state_->wanted, rounded(bytes));
  return block;
}

std::shared_ptr<SharedWindow::Block> SharedWindow::find(const void* data) const {
  const std::lock_guard lock(state_->mutex);
  const auto block = state_->live.find(static_cast<const std::byte*>(data));
  return block == state_->live.end() ? nullptr : block->second.lock();
}

SharedWindow::Turn SharedWindow::open(std::shared_ptr<Block> own, int64_t bytes) const {
  Turn turn{++state_->turns, std::move(own), bytes, {}};
  const int64_t before = turn.number - kTurns;  // the turn that had this slot
  Slot& slot = state_->slot(state_->group.rank(), turn.number);
  check(before <= 0 || reached(slot.closed, before), "too many transfers of a shared window are under way");
  if (before > 0) state_->wait_for_all(&Slot::closed, before);
  slot.segment = turn.own ? turn.own->segment_ : -1;
  slot.offset = turn.own ? turn.own->offset_ : 0;
  slot.lacking = std::max(turn.own ? 0 : rounded(bytes), std::exchange(state_->wanted, 0));
  if (turn.own) turn.own->last_turn_ = turn.number;
  tell(slot.opened, turn.number);
  return turn;
}

void SharedWindow::meet(Turn& turn) const {
  state_->wait_for_all(&Slot::opened, turn.number);
  const int ranks = state_->group.size();
  int64_t lacking = 0;
  for (int r = 0; r < ranks; ++r) lacking = std::max(lacking, state_->slot(r, turn.number).lacking);
  if (lacking > 0) {
    // All ranks come here in the same order and know the same numbers, so they agree on segments and sizes. Half as
    // much again each time: uneven routing makes the need vary.
    const int64_t growth = std::max({lacking, rounded(state_->bytes / 2), kLeastGrowth});
    auto memory = state_->group.share(growth);
    const std::lock_guard lock(state_->mutex);
    state_->segments.push_back({std::move(memory), {{0, growth}}});
    state_->bytes += growth;
  }
  if (!turn.own) {
    // From the beginning of what was added: the others count on it.
    const std::lock_guard lock(state_->mutex);
    const auto place = state_->take(rounded(turn.bytes), state_->segments.size() - 1);
    check(place.second == 0 && place.first >= 0, "a new segment of a shared window is not empty");
    turn.own = state_->hand_out(state_, place, rounded(turn.bytes));
    turn.own->last_turn_ = turn.number;
  }
  for (int r = 0; r < ranks; ++r) {
    const Slot& slot = state_->slot(r, turn.number);
    const auto& segment = slot.segment < 0 ? state_->segments.back() : state_->segments[slot.segment];
    turn.blocks.push_back(segment.memory->region(r).data() + slot.offset);
  }
}

void SharedWindow::written(const Turn& turn) const {
  tell(state_->slot(state_->group.rank(), turn.number).written, turn.number);
}

void SharedWindow::await(const Turn& turn) const { state_->wait_for_all(&Slot::written, turn.number); }

void SharedWindow::close(const Turn& turn) const {
  tell(state_->slot(state_->group.rank(), turn.number).closed, turn.number);
}

int64_t SharedWindow::bytes() const { return state_->bytes; }

}  // namespace conclave::comm
