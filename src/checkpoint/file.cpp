// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace conclave::checkpoint {
namespace {

[[noreturn]] void fail(std::string_view action, const path& where, int code = errno) {
  throw IoError("cannot {} {}: {}", action, where.string(), std::generic_category().message(code));
}

[[noreturn]] void fail_space(std::string_view action, const path& where, int64_t bytes) {
  const int code = errno;
  if (code != ENOSPC && code != EDQUOT && code != EFBIG) fail(action, where, code);
  throw IoError("cannot {} {}: {}; {} bytes needed, {} free", action, where.string(),
                std::generic_category().message(code), bytes, free_bytes(where.parent_path()));
}

int checked_regular(int descriptor, const path& where) {
  if (descriptor < 0) {
    if (errno == ELOOP)
      throw DataError("{} is a symbolic link, not a file; a checkpoint holds only files", where.string());
    fail("open", where);
  }
  struct stat info {};
  if (fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode)) return descriptor;
  ::close(descriptor);
  throw DataError("{} is not a regular file", where.string());
}

}  // namespace

File::File(int descriptor, path where) : descriptor_(descriptor), path_(std::move(where)) {
  struct stat info {};
  if (fstat(descriptor_, &info) == 0) size_ = info.st_size;
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)), size_(other.size_) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open(const path& where) {
  return File(checked_regular(::open(where.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK), where), where);
}

File File::open_beneath(const path& folder, const std::string& name) {
  check(!name.empty() && name.find('/') == std::string::npos && name != "." && name != "..", "one path component");
  const int parent = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (parent < 0) fail("open the folder", folder);
  const int descriptor = ::openat(parent, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  const int code = errno;
  ::close(parent);
  errno = code;
  return File(checked_regular(descriptor, folder / name), folder / name);
}

File File::open_for_update(const path& where) {
  return File(checked_regular(::open(where.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC), where), where);
}

File File::create(const path& where) {
  const int descriptor = ::open(where.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) fail_space("create", where, 0);
  return File(descriptor, where);
}

void File::read_at(int64_t offset, std::span<std::byte> out) const {
  for (size_t done = 0; done < out.size();) {
    const auto got = ::pread(descriptor_, out.data() + done, out.size() - done, offset + static_cast<int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", path_);
    if (got == 0)
      throw DataError("{} ends at byte {}, {} bytes short", path_.string(), offset + static_cast<int64_t>(done),
                      out.size() - done);
    done += static_cast<size_t>(got);
  }
}

void File::write_at(int64_t offset, std::span<const std::byte> bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const auto put =
        ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done, offset + static_cast<int64_t>(done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) fail_space("write", path_, static_cast<int64_t>(bytes.size() - done));
    done += static_cast<size_t>(put);
  }
}

void File::reserve(int64_t bytes) {
  // Not posix_fallocate: where the file system cannot reserve, libc would write every block instead.
  while (::fallocate(descriptor_, 0, 0, bytes) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) return;
    fail_space("reserve space for", path_, bytes);
  }
}

void File::sync() {
  // A failed fsync is never repeated: the kernel may have dropped the pages and report success the second time.
  if (::fsync(descriptor_) != 0) fail_space("fsync", path_, 0);
}

void File::close() {
  if (::close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) fail("close", path_);
}

std::string read_text(const File& file, int64_t limit) {
  if (file.size() > limit)
    throw DataError("{} has {} bytes; at most {} are allowed", file.where().string(), file.size(), limit);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

namespace {

path write_beside(const path& where, std::string_view text) {
  const path temporary = where.parent_path() / fmt::format(".{}.{}.tmp", where.filename().string(), random_id());
  try {
    auto file = File::create(temporary);
    file.write_at(0, std::as_bytes(std::span(text)));
    file.sync();
    file.close();
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  return temporary;
}

}  // namespace

void write_file_atomically(const path& where, std::string_view text) {
  const auto temporary = write_beside(where, text);
  if (::rename(temporary.c_str(), where.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary.c_str());
    fail("replace", where, code);
  }
  sync_folder(where.parent_path());
}

bool create_file_atomically(const path& where, std::string_view text) {
  const auto temporary = write_beside(where, text);
  const int result = ::link(temporary.c_str(), where.c_str());
  const int code = errno;
  ::unlink(temporary.c_str());
  if (result != 0 && code == EEXIST) return false;
  if (result != 0) fail("create", where, code);
  sync_folder(where.parent_path());
  return true;
}

void sync_folder(const path& folder) {
  const path real = folder.empty() ? path(".") : folder;
  const int descriptor = ::open(real.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail("open the folder", real);
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  if (result != 0 && code != EINVAL) fail("fsync the folder", real, code);
}

void rename_file(const path& from, const path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail(fmt::format("rename {} to", from.string()), to);
}

bool remove_tree(const path& folder) noexcept {
  std::error_code code;
  std::filesystem::remove_all(folder, code);
  return !code;
}

int64_t free_bytes(const path& folder) {
  struct statvfs info {};
  const path real = folder.empty() ? path(".") : folder;
  if (::statvfs(real.c_str(), &info) != 0) fail("ask for the free space of", real);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

std::string random_id() {
  uint64_t bits = 0;
  if (::getrandom(&bits, sizeof bits, 0) != sizeof bits) throw IoError("the system gives no random numbers");
  return fmt::format("{:016x}", bits);
}

}  // namespace conclave::checkpoint
