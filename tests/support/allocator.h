// SPDX-License-Identifier: Apache-2.0
// What the C library's allocator says is in use. Sanitizers bring their own, of which it knows nothing.
#pragma once

#include <malloc.h>

#include <cstdint>
#include <vector>

namespace conclave::test {

// Bytes handed out and not given back, over all arenas and mapped blocks.
inline int64_t bytes_in_use() {
  const auto info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

inline bool allocator_counts() {
  constexpr int64_t kBlock = 1 << 20;
  const int64_t before = bytes_in_use();
  const std::vector<char> block(kBlock);
  const volatile char* const first = block.data();  // volatile: a block that nobody reads may never be asked for
  return bytes_in_use() - before + *first >= kBlock;
}

}  // namespace conclave::test
