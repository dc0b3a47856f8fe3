// SPDX-License-Identifier: Apache-2.0
#include "text/byte_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace conclave::text {
namespace {

constexpr size_t kInputBytes = size_t{1} << 18;

class FileStream final : public ByteStream {
 public:
  // O_NONBLOCK: opening a pipe that nobody writes to would wait for ever; it changes nothing for files.
  explicit FileStream(const std::string& path)
      : path_(path), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (file_ < 0) throw IoError("cannot open {}: {}", path_, std::strerror(errno));
    struct stat about {};
    if (fstat(file_, &about) != 0 || !S_ISREG(about.st_mode)) {
      close(file_);
      throw IoError("{} is not a regular file; text is read from files only", path_);
    }
  }
  ~FileStream() override { close(file_); }
  FileStream(const FileStream&) = delete;
  FileStream& operator=(const FileStream&) = delete;

  size_t read(std::span<char> out) override {
    ssize_t got;
    do {
      got = pread(file_, out.data(), out.size(), offset_);
    } while (got < 0 && errno == EINTR);
    if (got < 0) throw IoError("cannot read {} at byte {}: {}", path_, offset_, std::strerror(errno));
    offset_ += got;
    return static_cast<size_t>(got);
  }
  int64_t consumed() const override { return offset_; }

 private:
  std::string path_;
  int file_;
  int64_t offset_ = 0;
};

// What gzip and zstd share: a buffer of compressed bytes.
class CompressedStream : public ByteStream {
 public:
  CompressedStream(const std::string& path, std::string_view format)
      : path_(path), format_(format), file_(path), buffer_(kInputBytes) {}
  int64_t consumed() const override { return file_.consumed() - static_cast<int64_t>(input_.size()); }

 protected:
  // Makes input_ hold something; false at the end of the file.
  bool refill() {
    if (input_.empty()) input_ = {buffer_.data(), file_.read(buffer_)};
    return !input_.empty();
  }
  [[noreturn]] void truncated() const {
    throw DataError("{}: the {} data ends early, after {} bytes: the file is cut off; copy or make it again", path_,
                    format_, consumed());
  }
  [[noreturn]] void broken(std::string_view reason) const {
    throw DataError("{}: broken {} data near byte {}: {}", path_, format_, consumed(), reason);
  }

  std::string_view input_;

 private:
  std::string path_;
  std::string_view format_;
  FileStream file_;
  std::vector<char> buffer_;
};

class GzipStream final : public CompressedStream {
 public:
  explicit GzipStream(const std::string& path) : CompressedStream(path, "gzip") {
    constexpr int kGzipOnly = 16;
    check(inflateInit2(&state_, kGzipOnly + MAX_WBITS) == Z_OK, "zlib starts");
  }
  ~GzipStream() override { inflateEnd(&state_); }

  size_t read(std::span<char> out) override {
    size_t made = 0;
    while (made == 0) {
      if (!refill()) {
        if (!between_members_) truncated();
        return 0;
      }
      if (between_members_) check(inflateReset(&state_) == Z_OK, "zlib restarts");
      made = inflate_into(out);
    }
    return made;
  }

 private:
  z_stream state_{};
  bool between_members_ = false;  // several gzip files end to end are one

  size_t inflate_into(std::span<char> out) {
    state_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input_.data()));
    state_.avail_in = static_cast<uInt>(input_.size());
    state_.next_out = reinterpret_cast<Bytef*>(out.data());
    state_.avail_out = static_cast<uInt>(out.size());
    const int result = inflate(&state_, Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
      broken(state_.msg ? state_.msg : "not gzip");
    }
    input_.remove_prefix(input_.size() - state_.avail_in);
    between_members_ = result == Z_STREAM_END;
    return out.size() - state_.avail_out;
  }
};

class ZstdStream final : public CompressedStream {
 public:
  explicit ZstdStream(const std::string& path) : CompressedStream(path, "zstd"), state_(ZSTD_createDStream()) {
    check(state_ != nullptr, "zstd starts");
  }
  ~ZstdStream() override { ZSTD_freeDStream(state_); }

  size_t read(std::span<char> out) override {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos == 0) {
      // Output may wait inside zstd after the last input byte, so an empty input is still worth a call.
      const bool more = refill();
      ZSTD_inBuffer input{input_.data(), input_.size(), 0};
      if (!more && frame_done_) return 0;
      const size_t result = ZSTD_decompressStream(state_, &output, &input);
      if (ZSTD_isError(result)) broken(ZSTD_getErrorName(result));
      input_.remove_prefix(input.pos);
      frame_done_ = result == 0;
      if (!more && output.pos == 0 && !frame_done_) truncated();
    }
    return output.pos;
  }

 private:
  ZSTD_DStream* state_;
  bool frame_done_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> open_stream(const std::string& path) {
  if (path.ends_with(".gz")) return std::make_unique<GzipStream>(path);
  if (path.ends_with(".zst")) return std::make_unique<ZstdStream>(path);
  return std::make_unique<FileStream>(path);
}

}  // namespace conclave::text
