// SPDX-License-Identifier: Apache-2.0
// Hash map from a 64-bit key to a small value, open addressing with linear probing: the inner loop of merging and
// counting pairs. It cannot erase, and the key ~0 is reserved. Pointers into it die at the next insertion.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace conclave::text {

// Key of an ordered pair of token ids (both non-negative, so never ~0).
inline uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}
inline int32_t left_of(uint64_t pair) { return static_cast<int32_t>(pair >> 32); }
inline int32_t right_of(uint64_t pair) { return static_cast<int32_t>(pair & 0xffffffffu); }

template <typename Value>
class FlatMap {
 public:
  FlatMap() : slots_(16) {}

  // nullptr when absent.
  const Value* find(uint64_t key) const {
    const Slot& slot = slots_[place(key)];
    return slot.key == key ? &slot.value : nullptr;
  }
  Value* find(uint64_t key) {
    Slot& slot = slots_[place(key)];
    return slot.key == key ? &slot.value : nullptr;
  }
  // Inserts a default value when absent.
  Value& operator[](uint64_t key) {
    size_t at = place(key);
    if (slots_[at].key == key) return slots_[at].value;
    if (2 * (size_ + 1) > slots_.size()) {
      grow();
      at = place(key);
    }
    slots_[at].key = key;
    ++size_;
    return slots_[at].value;
  }
  size_t size() const { return size_; }
  // Calls visit(key, value) in an order that depends on the history of insertions.
  template <typename Visit>
  void for_each(Visit&& visit) const {
    for (const Slot& slot : slots_) {
      if (slot.key != kFree) visit(slot.key, slot.value);
    }
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  struct Slot {
    uint64_t key = kFree;
    Value value{};
  };

  // Where `key` is, or the free slot where it would go.
  size_t place(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    // The high half of a product by an odd constant (2^64 / golden ratio) depends on every bit of the key.
    size_t at = ((key * 0x9e3779b97f4a7c15u) >> 20) & mask;
    while (slots_[at].key != key && slots_[at].key != kFree) at = (at + 1) & mask;
    return at;
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (Slot& slot : old) {
      if (slot.key != kFree) slots_[place(slot.key)] = std::move(slot);
    }
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

}  // namespace conclave::text
