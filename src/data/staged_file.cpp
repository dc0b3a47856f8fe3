// SPDX-License-Identifier: Apache-2.0
#include "data/staged_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace conclave::data {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

std::string directory_of(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// Between our open and our lock another writer may have renamed the file away: writing then would damage its result.
bool still_named(int fd, const std::string& path) {
  struct stat ours {
  }, named{};
  return fstat(fd, &ours) == 0 && lstat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
         ours.st_dev == named.st_dev;
}

}  // namespace

StagedFile::StagedFile(std::string path) : path_(std::move(path)), staging_(path_ + ".tmp") {
  while (true) {
    fd_ = open(staging_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0)
      throw IoError("{}: cannot be created: {}; check that its directory exists and is writable", staging_,
                    std::strerror(errno));
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      close(fd_);
      throw IoError("{}: another process is writing it; wait for that one or choose another output", staging_);
    }
    if (still_named(fd_, staging_)) break;
    close(fd_);
  }
  if (ftruncate(fd_, 0) != 0) fail("cannot be emptied", errno);
  buffer_.reserve(kBufferBytes);
}

StagedFile::~StagedFile() { discard(); }

void StagedFile::discard() {
  if (fd_ < 0) return;
  unlink(staging_.c_str());  // before close, which gives up the lock
  close(fd_);
  fd_ = -1;
}

void StagedFile::fail(const char* what, int reason) {
  const auto pending = static_cast<int64_t>(buffer_.size());
  struct statvfs disk {};
  const bool known = fstatvfs(fd_, &disk) == 0;
  discard();
  if (reason != ENOSPC && reason != EDQUOT && reason != EFBIG)
    throw IoError("{}: {}: {}; the unfinished file was removed", staging_, what, std::strerror(reason));
  const auto available =
      known ? fmt::format("{}", uint64_t{disk.f_bavail} * disk.f_frsize) : std::string("an unknown number");
  throw IoError(
      "{}: {} after {} bytes: {}. At least {} more bytes are needed, {} are free on the device; free some space or "
      "choose "
      "another output. The unfinished file was removed, nothing else was touched",
      staging_, what, written_, std::strerror(reason), pending, available);
}

void StagedFile::write(std::span<const std::byte> bytes) {
  check(fd_ >= 0, "a staged file is written before it is published");
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  if (buffer_.size() >= kBufferBytes) flush();
}

void StagedFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t put = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      const int reason = errno;
      buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(done));
      fail("writing stopped", reason);
    }
    done += static_cast<size_t>(put);
    written_ += put;
  }
  buffer_.clear();
}

void StagedFile::finish() {
  flush();
  if (fsync(fd_) != 0) fail("cannot be brought to the device", errno);
}

void StagedFile::publish() {
  check(fd_ >= 0 && buffer_.empty(), "a staged file is finished before it is published");
  if (std::rename(staging_.c_str(), path_.c_str()) != 0) fail("cannot be renamed to its final name", errno);
  close(fd_);
  fd_ = -1;
  sync_directory_of(path_);
}

void sync_directory_of(const std::string& path) {
  const auto directory = directory_of(path);
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw IoError("{}: cannot be opened: {}", directory, std::strerror(errno));
  const int result = fsync(fd), reason = errno;
  close(fd);
  // Some network file systems cannot sync a directory and say so with EINVAL; their renames are durable on their own
  // terms.
  if (result != 0 && reason != EINVAL) throw IoError("{}: cannot be synced: {}", directory, std::strerror(reason));
}

}  // namespace conclave::data
