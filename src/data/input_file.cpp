// SPDX-License-Identifier: Apache-2.0
#include "data/input_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace conclave::data {
namespace {

const char* kind(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

int64_t nanoseconds(const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

}  // namespace

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // Without O_NONBLOCK the open of a FIFO waits for a writer that never comes.
  fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) {
    const int reason = errno;
    if (reason == ENOENT || reason == ENOTDIR)
      throw DataError("{}: no such file; check the path (token files are named by their prefix, without .bin or .idx)",
                      path_);
    if (reason == EACCES || reason == EPERM)
      throw IoError("{}: permission denied; make the file readable and its directories searchable for this user",
                    path_);
    throw IoError("{}: cannot be opened: {}", path_, std::strerror(reason));
  }
  const bool known = fstat(fd_, &status_) == 0;
  if (known && S_ISREG(status_.st_mode)) return;
  const int reason = errno;
  close(fd_);
  if (!known) throw IoError("{}: its size cannot be read: {}", path_, std::strerror(reason));
  throw DataError("{}: is {}, a regular file is needed; check the path", path_, kind(status_.st_mode));
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), status_(other.status_) {}

InputFile::~InputFile() {
  if (fd_ >= 0) close(fd_);
}

int64_t InputFile::modified() const { return nanoseconds(status_.st_mtim); }

void InputFile::read_at(int64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const auto at = offset + static_cast<int64_t>(done);
    const ssize_t got = pread(fd_, out.data() + done, out.size() - done, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw IoError("{}: reading at byte {} failed: {}", path_, at, std::strerror(errno));
    if (got == 0) {
      require_unchanged();
      throw DataError("{}: ends at byte {}, {} more bytes were expected there; the file is truncated", path_, at,
                      out.size() - done);
    }
    done += static_cast<size_t>(got);
  }
  require_unchanged();
}

void InputFile::require_unchanged() const {
  struct stat now {};
  if (fstat(fd_, &now) != 0) throw IoError("{}: its size cannot be read: {}", path_, std::strerror(errno));
  if (now.st_size == status_.st_size && nanoseconds(now.st_mtim) == modified()) return;
  throw DataError(
      "{}: was changed while in use: {} bytes when opened, {} bytes now; what was read can no longer be trusted. "
      "Restore "
      "the file (or start a new run on the new one) and let nothing write to it during a run",
      path_, status_.st_size, now.st_size);
}

}  // namespace conclave::data
