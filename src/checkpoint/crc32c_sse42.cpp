// SPDX-License-Identifier: Apache-2.0
// Compiled with -msse4.2: intrinsics and raw pointers only, so that no inline function shared with other files can
// carry the instruction to a machine that lacks it.
#include <nmmintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace conclave::checkpoint {

bool crc32c_instruction_available() { return __builtin_cpu_supports("sse4.2") != 0; }

uint32_t crc32c_instruction(uint32_t crc, const unsigned char* data, size_t size) {
  uint64_t state = static_cast<uint32_t>(~crc);
  size_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    state = _mm_crc32_u64(state, word);
  }
  uint32_t rest = static_cast<uint32_t>(state);
  for (; i < size; ++i) rest = _mm_crc32_u8(rest, data[i]);
  return ~rest;
}

}  // namespace conclave::checkpoint
