// SPDX-License-Identifier: Apache-2.0
// Transfers between ranks of one host through memory that all of them see: whoever receives gives a block of its own
// region, whoever sends writes into it, or the other way round; nothing is copied on the way. It orders the accesses
// and manages the space; what lies in a block is the user's business.
//
// A transfer is a Turn. All ranks open, meet and close the same turns, each kind of call in the same order on all of
// them; several turns may be open:
//
// - open: tells the others where this rank's block is; without one, how many bytes it lacks
// - meet: waits until all have opened; where a rank lacks space the window grows (collective); all blocks are known now
// - written: this rank is done writing, into the others' blocks or its own
// - await: waits until all have written
// - close: this rank neither reads nor writes any more
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "comm/group.h"

namespace conclave::comm {

class SharedWindow {
 public:
  static constexpr int64_t kAlignment = 64;
  // Turns that may be open at a time.
  static constexpr int64_t kTurns = 64;

  struct State;
  // A piece of this rank's region, on a kAlignment boundary. Its space is used again when it has been dropped and
  // every rank has closed the last turn it was given to.
  class Block {
   public:
    Block(std::shared_ptr<State> state, int segment, int64_t offset, int64_t bytes);
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block();
    std::byte* data() const { return data_; }

   private:
    friend class SharedWindow;
    std::shared_ptr<State> state_;
    int segment_;
    int64_t offset_, bytes_, last_turn_ = 0;
    std::byte* data_;
  };

  struct Turn {
    int64_t number = 0;
    std::shared_ptr<Block> own;
    int64_t bytes = 0;
    std::vector<std::byte*> blocks;  // by rank, from meet() on
  };

  // Collective; the ranks of `group` are on one host.
  explicit SharedWindow(const Group& group);

  // Local. Null where there is no room now.
  std::shared_ptr<Block> allocate(int64_t bytes) const;
  // The same, and the window grows for the likes of it at the next meet().
  std::shared_ptr<Block> allocate_or_grow_later(int64_t bytes) const;
  // The block that begins at `data`, if there is one.
  std::shared_ptr<Block> find(const void* data) const;

  // With `own` null, `bytes` are needed and meet() gets them.
  Turn open(std::shared_ptr<Block> own, int64_t bytes) const;
  void meet(Turn& turn) const;
  void written(const Turn& turn) const;
  void await(const Turn& turn) const;
  void close(const Turn& turn) const;

  int64_t bytes() const;  // of this rank's region

 private:
  std::shared_ptr<State> state_;
};

}  // namespace conclave::comm
