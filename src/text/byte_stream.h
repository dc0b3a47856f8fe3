// SPDX-License-Identifier: Apache-2.0
// The bytes of a file from front to back, decompressed when its name ends in .gz or .zst. It holds a fixed amount of
// memory whatever the file claims to hold, and does not know what the bytes mean.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace conclave::text {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Fills the front of `out` and returns how many bytes; 0 only at the end. Throws IoError when the file cannot be read
  // and DataError, with the offset in the file, when compressed data is broken or ends early.
  virtual size_t read(std::span<char> out) = 0;
  // Bytes of the file itself used so far.
  virtual int64_t consumed() const = 0;
};

// Throws IoError when `path` cannot be opened or is not a regular file.
std::unique_ptr<ByteStream> open_stream(const std::string& path);

}  // namespace conclave::text
