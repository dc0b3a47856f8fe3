// SPDX-License-Identifier: Apache-2.0
// The safetensors format: a strict reader for our shards and for weights that others wrote, and the header of what we
// write. Every number of a header is bounded by the file's real size before it is used. It holds no checksums: the
// manifest has them.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/box.h"
#include "checkpoint/file.h"
#include "comm/group.h"

namespace conclave::checkpoint {

struct TensorInfo {
  std::string name;
  std::string dtype;  // "F32", "BF16", ... as the format writes it
  Shape shape;
  int64_t begin = 0;  // first byte in the file
  int64_t bytes = 0;
};

// Which tensor names a reader accepts: what we write ([A-Za-z0-9_.-], at most 256, no ".."), or any printable UTF-8 of
// at most 1024 bytes without ".." as a path component, for other people's weights.
enum class NameRule { kOurs, kAny };
bool name_is_ours(std::string_view name);

// Bytes per element of "F32" and so on; 0 for a type we do not read.
int64_t dtype_size(std::string_view dtype);
std::string dtype_name(comm::DType dtype);

// An open file whose header has been checked. Throws DataError with path and reason for every deviation: besides the
// format's own rules, at most 16 MiB of header, 8 dimensions, no key twice, whole numbers only, tensors back to back
// from first to last byte.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const path& where, NameRule rule = NameRule::kAny);
  SafetensorsFile(File file, NameRule rule);

  const path& where() const { return file_.where(); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in order of their bytes
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Throws DataError if there is none of that name.
  const TensorInfo& at(const std::string& name) const;
  bool contains(const std::string& name) const { return index_.count(name) != 0; }
  // out.size() is the tensor's byte count.
  void read(const std::string& name, std::span<std::byte> out) const;

 private:
  File file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};
// Reads the JSON of a header; offsets stay relative to the end of the header. `where` stands in the errors.
SafetensorsHeader parse_safetensors_header(std::string_view json, NameRule rule, const std::string& where);

// Orders `tensors` as the reference writer does (by element type, larger ones first, then by name), sets begin and
// bytes, and returns the file's first bytes up to the data: the length, the JSON with `format: pt`, spaces up to a
// multiple of 8.
std::string lay_out_safetensors(std::vector<TensorInfo>& tensors);

}  // namespace conclave::checkpoint
