// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/digest.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>

#include "core/error.h"

namespace conclave::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "checkpoints hold little-endian numbers");

Digest of(const XXH128_hash_t& hash) { return {hash.high64, hash.low64}; }

std::array<std::byte, 16> big_endian(const Digest& digest) {
  std::array<std::byte, 16> bytes;
  for (int i = 0; i < 8; ++i) {
    bytes[i] = static_cast<std::byte>(digest.high >> (56 - 8 * i));
    bytes[8 + i] = static_cast<std::byte>(digest.low >> (56 - 8 * i));
  }
  return bytes;
}

}  // namespace

std::string Digest::hex() const { return fmt::format("{:016x}{:016x}", high, low); }

Digest digest_from_hex(std::string_view text) {
  const bool digits = text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  if (text.size() != 32 || !digits) throw DataError("'{}' is not an XXH3-128 digest of 32 lower-case digits", text);
  const auto half = [](std::string_view part) { return std::stoull(std::string(part), nullptr, 16); };
  return {half(text.substr(0, 16)), half(text.substr(16))};
}

Digest xxh3(std::span<const std::byte> bytes) { return of(XXH3_128bits(bytes.data(), bytes.size())); }
Digest xxh3(std::string_view text) { return of(XXH3_128bits(text.data(), text.size())); }

void DigestStream::Free::operator()(XXH3_state_s* state) const { XXH3_freeState(state); }

DigestStream::DigestStream() : state_(XXH3_createState()) {
  check(state_ != nullptr && XXH3_128bits_reset(state_.get()) == XXH_OK, "XXH3 state");
}
DigestStream::~DigestStream() = default;
DigestStream::DigestStream(DigestStream&&) noexcept = default;
DigestStream& DigestStream::operator=(DigestStream&&) noexcept = default;

void DigestStream::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}
void DigestStream::update(std::string_view text) { update(std::as_bytes(std::span(text))); }
Digest DigestStream::finish() const { return of(XXH3_128bits_digest(state_.get())); }

Digest tensor_digest(const TensorKey& key, std::string_view dtype, std::span<const int64_t> global_shape,
                     std::span<const std::byte> bytes) {
  const std::string_view end("\0", 1);
  DigestStream stream;
  for (const std::string_view part : {std::string_view(key.name), std::string_view(key.role), dtype}) {
    stream.update(part);
    stream.update(end);
  }
  const auto rank = static_cast<int64_t>(global_shape.size());
  stream.update(std::as_bytes(std::span(&rank, 1)));
  stream.update(std::as_bytes(global_shape));
  stream.update(bytes);
  return stream.finish();
}

Digest state_digest(std::vector<std::pair<TensorKey, Digest>> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  DigestStream stream;
  for (const auto& [key, digest] : tensors) stream.update(big_endian(digest));
  return stream.finish();
}

}  // namespace conclave::checkpoint
