// SPDX-License-Identifier: Apache-2.0
// Remembers how short pieces of text were encoded. One per thread: it is the mutable part of encoding, so that a
// tokenizer can be const and shared. Direct-mapped and of fixed size (4 MiB): a new piece evicts the one in its slot.
#pragma once

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace conclave::text {

class WordCache {
 public:
  // Forgets everything unless the cache was last used with the same `owner` (a fingerprint of the tokenizer).
  void bind(uint64_t owner) {
    if (owner == owner_ && !slots_.empty()) return;
    owner_ = owner;
    slots_.assign(kSlots, Slot{});
  }

  // Appends the ids of `piece` to `out`; false when it is not here.
  bool recall(std::string_view piece, std::vector<int32_t>& out) const {
    if (piece.size() > kBytes) return false;
    const Slot& slot = slots_[place(piece)];
    if (std::string_view(slot.bytes.data(), slot.size) != piece) return false;
    out.insert(out.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
    return true;
  }

  void remember(std::string_view piece, std::span<const int32_t> ids) {
    if (piece.size() > kBytes || ids.size() > kIds) return;
    Slot& slot = slots_[place(piece)];
    slot.size = static_cast<uint8_t>(piece.size());
    slot.count = static_cast<uint8_t>(ids.size());
    std::copy(piece.begin(), piece.end(), slot.bytes.begin());
    std::copy(ids.begin(), ids.end(), slot.ids.begin());
  }

 private:
  static constexpr size_t kSlots = size_t{1} << 16;
  static constexpr size_t kBytes = 26;
  static constexpr size_t kIds = 9;
  struct Slot {
    uint8_t size = 0;  // 0 = free: no piece is empty
    uint8_t count = 0;
    std::array<char, kBytes> bytes;
    std::array<int32_t, kIds> ids;
  };
  static_assert(sizeof(Slot) == 64, "a slot is one cache line");

  static size_t place(std::string_view piece) { return XXH3_64bits(piece.data(), piece.size()) & (kSlots - 1); }

  uint64_t owner_ = 0;
  std::vector<Slot> slots_;
};

}  // namespace conclave::text
