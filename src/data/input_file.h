// SPDX-License-Identifier: Apache-2.0
// A regular file read by position (pread, never mmap: a shrunk file is an error message, not a SIGBUS). It holds no
// position and no buffer, so threads may share it. It does not write and does not interpret what it reads.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace conclave::data {

class InputFile {
 public:
  // Throws DataError when the file is missing or is a directory, FIFO or device; IoError when it may not be read.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return status_.st_size; }  // bytes, when it was opened
  int64_t modified() const;                         // nanoseconds since 1970, when it was opened
  // Fills `out` from byte `offset`. Throws DataError when the file ends before that or was changed since it was opened.
  void read_at(int64_t offset, std::span<std::byte> out) const;

 private:
  void require_unchanged() const;

  std::string path_;
  int fd_ = -1;
  struct stat status_ {};
};

}  // namespace conclave::data
