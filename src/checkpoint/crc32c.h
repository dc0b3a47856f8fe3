// SPDX-License-Identifier: Apache-2.0
// CRC32C (Castagnoli, polynomial 0x1EDC6F41, reflected), the checksum taken while bytes are copied. It finds accidents,
// not attacks; file identity is the XXH3-128 of digest.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave::checkpoint {

// Continues `crc`, the result for the bytes before (0 at the start). Uses the processor's instruction where it has one.
uint32_t crc32c(uint32_t crc, std::span<const std::byte> bytes);
// The same by table, on any machine; what the fast one is tested against.
uint32_t crc32c_table(uint32_t crc, std::span<const std::byte> bytes);

// The one function compiled for a special instruction set: raw pointers only. Call it only if the other says so.
bool crc32c_instruction_available();
uint32_t crc32c_instruction(uint32_t crc, const unsigned char* data, size_t size);

}  // namespace conclave::checkpoint
