// SPDX-License-Identifier: Apache-2.0
#include "data/shuffle.h"

#include <bit>

#include "core/error.h"

namespace conclave::data {
namespace {

// Four rounds are enough to look random to an adaptive adversary (Luby and Rackoff); halves of a few bits need more.
constexpr uint64_t kRounds = 8;

}  // namespace

Permutation::Permutation(uint64_t seed, std::string_view name, uint64_t epoch, int64_t size)
    : rounds_(Random(seed, Purpose::kShuffle, name).bits(epoch), Purpose::kShuffle, epoch),
      size_(static_cast<uint64_t>(size)) {
  check(size >= 1 && size <= int64_t{1} << 60, "a permutation of 1 ... 2^60 entries");
  half_bits_ = (std::bit_width(size_ - 1) + 1) / 2;
  if (half_bits_ == 0) half_bits_ = 1;
}

uint64_t Permutation::encrypt(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed = (left ^ rounds_.bits(round << 32 | right)) & mask;
    left = right;
    right = mixed;
  }
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t index) const {
  check(index >= 0 && static_cast<uint64_t>(index) < size_, "an index within the permutation");
  // The network permutes a power of four up to four times the size (or 4); outside values are sent on. The walk is a
  // cycle through `index` itself, so it ends.
  uint64_t value = static_cast<uint64_t>(index);
  do value = encrypt(value);
  while (value >= size_);
  return static_cast<int64_t>(value);
}

}  // namespace conclave::data
