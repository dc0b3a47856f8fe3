// SPDX-License-Identifier: Apache-2.0
// Files as checkpoints need them: exact reads at an offset, checked writes, fsync of files and folders, and no
// following of links out of a folder. No mmap: a file that shrinks must be an error, not a signal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace conclave::checkpoint {

using std::filesystem::path;

// An open regular file. Failures of the system throw IoError naming path and reason; a file that ends early throws
// DataError.
class File {
 public:
  // For files a user names; follows links.
  static File open(const path& where);
  // `name` is one path component inside `folder`; neither may be a link, and the file must be a regular one (a FIFO
  // does not block).
  static File open_beneath(const path& folder, const std::string& name);
  // An existing file, for writing in place; follows no link.
  static File open_for_update(const path& where);
  // Fails if the file exists.
  static File create(const path& where);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;

  const path& where() const { return path_; }
  int64_t size() const { return size_; }  // when opened
  // Fills `out` from byte `offset`, or throws.
  void read_at(int64_t offset, std::span<std::byte> out) const;
  void write_at(int64_t offset, std::span<const std::byte> bytes);
  // Claims space now, so that a full disk shows before the first byte. Does nothing where the file system cannot.
  void reserve(int64_t bytes);
  void sync();
  void close();  // reports what a destructor would hide

 private:
  File(int descriptor, path where);
  int descriptor_;
  path path_;
  int64_t size_ = 0;
};

// The whole of a small text file, refused above `limit` bytes.
std::string read_text(const File& file, int64_t limit);

// Replaces `where` by `text` so that a reader, or a crash, sees the old content or the new and never a part. Durable on
// return.
void write_file_atomically(const path& where, std::string_view text);
// As above but throws nothing and returns false if `where` exists: of several writers, one wins.
bool create_file_atomically(const path& where, std::string_view text);

void sync_folder(const path& folder);
void rename_file(const path& from, const path& to);
// Removes a folder and what is in it; follows no links. Returns false if something stayed.
bool remove_tree(const path& folder) noexcept;
int64_t free_bytes(const path& folder);
// 64 random bits as 16 hexadecimal digits.
std::string random_id();

}  // namespace conclave::checkpoint
