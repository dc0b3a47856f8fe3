// SPDX-License-Identifier: Apache-2.0
// For processors without the SSE4.2 instruction: the table does the work.
#include "checkpoint/crc32c.h"
#include "core/error.h"

namespace conclave::checkpoint {

bool crc32c_instruction_available() { return false; }

uint32_t crc32c_instruction(uint32_t, const unsigned char*, size_t) {
  throw BugError("crc32c_instruction called on a processor that has none");
}

}  // namespace conclave::checkpoint
