// SPDX-License-Identifier: Apache-2.0
#include "core/random.h"

#include <cmath>
#include <numbers>

namespace conclave {
namespace {

// SplitMix64's finaliser: spreads the bits of what identifies a stream over the key.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

std::array<uint32_t, 2> halves(uint64_t x) { return {static_cast<uint32_t>(x), static_cast<uint32_t>(x >> 32)}; }

}  // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return c;
}

Random::Random(uint64_t seed, Purpose purpose, uint64_t step, uint32_t layer)
    : key_(halves(mix(seed ^ mix(static_cast<uint64_t>(purpose))))), high_(halves(mix(mix(step) ^ layer))) {}

Random::Random(uint64_t seed, Purpose purpose, std::string_view name)
    : key_(halves(mix(seed ^ mix(static_cast<uint64_t>(purpose))))) {
  uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  high_ = halves(mix(hash));
}

std::array<uint32_t, 4> Random::words(uint64_t id) const {
  const auto low = halves(id);
  return philox({low[0], low[1], high_[0], high_[1]}, key_);
}

uint64_t Random::bits(uint64_t id) const {
  const auto w = words(id);
  return (uint64_t{w[1]} << 32) | w[0];
}

double Random::uniform(uint64_t id) const { return static_cast<double>(bits(id) >> 11) * 0x1.0p-53; }

double Random::normal(uint64_t id) const {
  const auto w = words(id);
  const double u = (static_cast<double>((uint64_t{w[1]} << 32 | w[0]) >> 11) + 1.0) * 0x1.0p-53;  // (0, 1]
  const double v = static_cast<double>((uint64_t{w[3]} << 32 | w[2]) >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace conclave
