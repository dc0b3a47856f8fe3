// SPDX-License-Identifier: Apache-2.0
// XXH3-128 identities: of bytes, of one logical tensor, of a whole training state. They do not depend on which rank
// holds what: equal state gives equal digests in every layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

struct XXH3_state_s;

namespace conclave::checkpoint {

struct Digest {
  uint64_t high = 0;
  uint64_t low = 0;
  bool operator==(const Digest&) const = default;
  std::string hex() const;  // 32 lower-case digits, most significant first, as `xxh128sum` prints
};

// Throws DataError unless `text` is exactly 32 lower-case hexadecimal digits.
Digest digest_from_hex(std::string_view text);

Digest xxh3(std::span<const std::byte> bytes);
Digest xxh3(std::string_view text);

// The digest of a sequence of pieces; equal to xxh3 of their concatenation.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(DigestStream&&) noexcept;
  DigestStream& operator=(DigestStream&&) noexcept;
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  Digest finish() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

// What a logical tensor is, apart from its bytes.
struct TensorKey {
  std::string name;
  std::string role;
  auto operator<=>(const TensorKey&) const = default;
};

// XXH3-128 over name, NUL, role, NUL, dtype ("F32"), NUL, the number of dimensions and each dimension of the global
// shape as little-endian int64, then the tensor's bytes in row-major order.
Digest tensor_digest(const TensorKey& key, std::string_view dtype, std::span<const int64_t> global_shape,
                     std::span<const std::byte> bytes);

// XXH3-128 over the 16 big-endian bytes of each tensor's digest, tensors ordered by (name, role) bytewise. The two
// levels let each rank digest the tensors it holds, whichever they are.
Digest state_digest(std::vector<std::pair<TensorKey, Digest>> tensors);

}  // namespace conclave::checkpoint
