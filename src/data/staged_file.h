// SPDX-License-Identifier: Apache-2.0
// A file written beside its final name and renamed onto it when complete: nothing half-written is ever seen under that
// name. A writer that was killed leaves PATH.tmp behind; the next one takes it over. No appending and no seeking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace conclave::data {

class StagedFile {
 public:
  // Creates PATH.tmp and locks it. Throws IoError when that fails or another process is writing the same file.
  explicit StagedFile(std::string path);
  ~StagedFile();  // removes PATH.tmp unless published
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  // Buffered. Throws IoError; when the device is full it names the bytes needed and the bytes free, and PATH.tmp is
  // gone.
  void write(std::span<const std::byte> bytes);
  // All bytes on the device (fsync). Nothing can be written afterwards.
  void finish();
  // Renames to the final name and syncs the directory. Throws IoError.
  void publish();

  const std::string& path() const { return path_; }
  int64_t size() const { return written_ + static_cast<int64_t>(buffer_.size()); }

 private:
  void flush();
  [[noreturn]] void fail(const char* what, int reason);
  void discard();

  std::string path_;
  std::string staging_;
  int fd_ = -1;
  int64_t written_ = 0;
  std::vector<std::byte> buffer_;
};

// Makes renames and removals in the directory of `path` durable. Throws IoError.
void sync_directory_of(const std::string& path);

}  // namespace conclave::data
