// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "checkpoint/json_text.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr int64_t kMaxHeader = int64_t{16} << 20;

// In the order of the reference implementation, which sorts a file's tensors by it, last first.
constexpr std::array<std::pair<std::string_view, int64_t>, 19> kDTypes{{{"BOOL", 1},
                                                                        {"U8", 1},
                                                                        {"I8", 1},
                                                                        {"F8_E5M2", 1},
                                                                        {"F8_E4M3", 1},
                                                                        {"F8_E8M0", 1},
                                                                        {"F8_E4M3FNUZ", 1},
                                                                        {"F8_E5M2FNUZ", 1},
                                                                        {"I16", 2},
                                                                        {"U16", 2},
                                                                        {"F16", 2},
                                                                        {"BF16", 2},
                                                                        {"I32", 4},
                                                                        {"U32", 4},
                                                                        {"F32", 4},
                                                                        {"C64", 8},
                                                                        {"F64", 8},
                                                                        {"I64", 8},
                                                                        {"U64", 8}}};

auto find_dtype(std::string_view dtype) {
  return std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& entry) { return entry.first == dtype; });
}

std::string read_header(const File& file) {
  if (file.size() < 8)
    throw DataError("{}: {} bytes are too few for a safetensors file", file.where().string(), file.size());
  uint64_t length = 0;
  file.read_at(0, std::as_writable_bytes(std::span(&length, 1)));
  const auto limit = static_cast<uint64_t>(std::min(kMaxHeader, file.size() - 8));
  if (length > limit)
    throw DataError("{}: its first 8 bytes claim a header of {} bytes; at most {} are possible", file.where().string(),
                    length, limit);
  std::string header(length, '\0');
  file.read_at(8, std::as_writable_bytes(std::span(header)));
  return header;
}

int64_t byte_count(const TensorInfo& tensor, const std::string& where) {
  const int64_t item = dtype_size(tensor.dtype);
  const auto elements = volume(tensor.shape);
  if (!elements || *elements > (int64_t{1} << 62) / item)
    throw DataError("{}: the shape of tensor '{}' is impossible", where, tensor.name);
  return *elements * item;
}

// Makes offsets absolute and checks that the tensors cover the file from the header to its last byte, once.
void place(std::vector<TensorInfo>& tensors, int64_t data_begin, const File& file) {
  const auto where = file.where().string();
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes);
  });
  int64_t expected = 0;
  for (auto& tensor : tensors) {
    if (tensor.begin != expected)
      throw DataError("{}: tensor '{}' begins at data byte {} where {} is due: a hole or an overlap", where,
                      tensor.name, tensor.begin, expected);
    if (tensor.bytes != byte_count(tensor, where))
      throw DataError("{}: tensor '{}' has {} bytes where its shape and type {} make {}", where, tensor.name,
                      tensor.bytes, tensor.dtype, byte_count(tensor, where));
    expected += tensor.bytes;
    if (expected > file.size() - data_begin)
      throw DataError("{}: tensor '{}' ends {} bytes behind the end of the file", where, tensor.name,
                      expected - (file.size() - data_begin));
    tensor.begin += data_begin;
  }
  if (expected != file.size() - data_begin)
    throw DataError("{}: {} bytes behind the last tensor", where, file.size() - data_begin - expected);
}

}  // namespace

bool name_is_ours(std::string_view name) {
  const bool characters = name.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") ==
                          std::string_view::npos;
  return characters && !name.empty() && name.size() <= 256 && name.find("..") == std::string_view::npos;
}

int64_t dtype_size(std::string_view dtype) {
  const auto found = find_dtype(dtype);
  return found == kDTypes.end() ? 0 : found->second;
}

std::string dtype_name(comm::DType dtype) {
  switch (dtype) {
    case comm::DType::kFloat32:
      return "F32";
    case comm::DType::kFloat64:
      return "F64";
    case comm::DType::kInt32:
      return "I32";
    case comm::DType::kInt64:
      return "I64";
  }
  throw BugError("element type {} has no name in checkpoints", static_cast<int>(dtype));
}

SafetensorsFile::SafetensorsFile(const path& where, NameRule rule) : SafetensorsFile(File::open(where), rule) {}

SafetensorsFile::SafetensorsFile(File file, NameRule rule) : file_(std::move(file)) {
  const auto text = read_header(file_);
  auto header = parse_safetensors_header(text, rule, where().string());
  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
  place(tensors_, 8 + static_cast<int64_t>(text.size()), file_);
  for (size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
}

const TensorInfo& SafetensorsFile::at(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    throw DataError("{}: no tensor '{}' among its {}", where().string(), name, tensors_.size());
  return tensors_[found->second];
}

void SafetensorsFile::read(const std::string& name, std::span<std::byte> out) const {
  const auto& tensor = at(name);
  check(static_cast<int64_t>(out.size()) == tensor.bytes, "a buffer of the tensor's size");
  file_.read_at(tensor.begin, out);
}

std::string lay_out_safetensors(std::vector<TensorInfo>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(find_dtype(b.dtype), std::string_view(a.name)) <
           std::pair(find_dtype(a.dtype), std::string_view(b.name));
  });
  std::string json = R"({"__metadata__":{"format":"pt"})";
  int64_t begin = 0;
  for (auto& tensor : tensors) {
    tensor.bytes = byte_count(tensor, tensor.name);
    tensor.begin = begin;
    begin += tensor.bytes;
    json += fmt::format(R"(,{}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", Json(tensor.name).dump(),
                        tensor.dtype, Json(tensor.shape).dump(), tensor.begin, begin);
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  check(static_cast<int64_t>(json.size()) <= kMaxHeader, "a header our own reader accepts");
  const uint64_t length = json.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  for (auto& tensor : tensors) tensor.begin += 8 + static_cast<int64_t>(length);
  return bytes + json;
}

}  // namespace conclave::checkpoint
