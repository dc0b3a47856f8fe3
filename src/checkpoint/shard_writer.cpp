// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/shard_writer.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "checkpoint/crc32c.h"
#include "checkpoint/file.h"
#include "checkpoint/plan.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

using parallel::StateEntry;

// Collects bytes into blocks of kBlockBytes. The CRC is that of the source, not of the copy: damage between the two
// shows.
class BlockWriter {
 public:
  BlockWriter(File& file, Failpoints& failpoints) : file_(file), failpoints_(failpoints) {
    buffer_.reserve(kBlockBytes);
  }

  void append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto size = std::min(bytes.size(), static_cast<size_t>(kBlockBytes) - buffer_.size());
      const auto piece = bytes.first(size);
      crc_ = crc32c(crc_, piece);
      buffer_.insert(buffer_.end(), piece.begin(), piece.end());
      bytes = bytes.subspan(size);
      if (buffer_.size() == static_cast<size_t>(kBlockBytes)) flush();
    }
  }

  FileRecord finish(std::string name) {
    if (!buffer_.empty()) flush();
    return {std::move(name), written_, digest_.finish(), std::move(blocks_)};
  }

 private:
  void flush() {
    const std::span<const std::byte> all(buffer_);
    const auto half = all.size() / 2;
    file_.write_at(written_, all.first(half));
    failpoints_.hit("mid-chunk");
    file_.write_at(written_ + static_cast<int64_t>(half), all.subspan(half));
    digest_.update(all);
    blocks_.push_back(std::exchange(crc_, 0));
    written_ += static_cast<int64_t>(all.size());
    buffer_.clear();
  }

  File& file_;
  Failpoints& failpoints_;
  std::vector<std::byte> buffer_;
  uint32_t crc_ = 0;
  int64_t written_ = 0;
  DigestStream digest_;
  std::vector<uint32_t> blocks_;
};

// Splits the entries over files so that none holds more than `limit` bytes of data, unless a single entry does.
std::vector<std::vector<const StateEntry*>> split(const parallel::StateDict& state, int64_t limit) {
  std::vector<std::vector<const StateEntry*>> files;
  int64_t size = 0;
  for (const auto& entry : state) {
    if (!entry.writes) continue;
    const auto bytes = static_cast<int64_t>(entry.data.size());
    if (files.empty() || (size > 0 && bytes > limit - size)) {
      files.emplace_back();
      size = 0;
    }
    files.back().push_back(&entry);
    size += bytes;
  }
  return files;
}

// A parameter keeps its name, so that the file reads well in Python; the others have their role in front. Further parts
// of the same tensor are numbered.
std::string name_in_file(const StateEntry& entry, int part) {
  const auto name = entry.role == "param" ? entry.name : fmt::format("{}.{}", entry.role, entry.name);
  return part == 0 ? name : fmt::format("{}.part-{}", name, part);
}

struct Layout {
  std::vector<TensorInfo> tensors;                   // in file order
  std::map<std::string, const StateEntry*> entries;  // by name in the file
  std::string head;                                  // bytes before the data
};

Layout lay_out(const std::vector<const StateEntry*>& entries) {
  Layout layout;
  std::map<TensorKey, int> parts;
  for (const auto* entry : entries) {
    const auto name = name_in_file(*entry, parts[key_of(*entry)]++);
    if (!layout.entries.emplace(name, entry).second) throw BugError("two saved tensors are called {}", name);
    layout.tensors.push_back({name, dtype_name(entry->dtype), entry->shape, 0, 0});
  }
  layout.head = lay_out_safetensors(layout.tensors);
  return layout;
}

void write_file(const path& folder, const std::string& name, const std::vector<const StateEntry*>& entries,
                SavedShards& shards, Failpoints& failpoints) {
  const auto layout = lay_out(entries);
  failpoints.hit("file-open");
  auto file = File::create(folder / name);
  int64_t size = static_cast<int64_t>(layout.head.size());
  for (const auto& tensor : layout.tensors) size += tensor.bytes;
  file.reserve(size);
  BlockWriter writer(file, failpoints);
  writer.append(std::as_bytes(std::span(layout.head)));
  failpoints.hit("header");
  const auto index = static_cast<int64_t>(shards.files.size());
  for (const auto& tensor : layout.tensors) {
    const auto& entry = *layout.entries.at(tensor.name);
    writer.append(entry.data);
    shards.chunks.push_back({key_of(entry), {box_of(entry), index, tensor.begin, tensor.bytes, crc32c(0, entry.data)}});
  }
  shards.files.push_back(writer.finish(name));
  failpoints.hit("before-file-fsync");
  file.sync();
  file.close();
  failpoints.hit("after-file-fsync");
}

}  // namespace

SavedShards write_shards(const path& folder, int rank, const parallel::StateDict& state, int64_t max_file_bytes,
                         Failpoints& failpoints) {
  SavedShards shards;
  const auto files = split(state, max_file_bytes);
  for (size_t i = 0; i < files.size(); ++i) {
    const auto name =
        i == 0 ? fmt::format("rank-{:05}.safetensors", rank) : fmt::format("rank-{:05}-{:02}.safetensors", rank, i);
    write_file(folder, name, files[i], shards, failpoints);
  }
  sync_folder(folder);
  return shards;
}

std::string shards_text(const SavedShards& shards) {
  Json files = Json::array(), chunks = Json::array();
  for (const auto& file : shards.files) files.push_back({file.name, file.size, file.digest.hex(), file.blocks});
  for (const auto& [key, chunk] : shards.chunks)
    chunks.push_back(
        {key.name, key.role, chunk.box.offset, chunk.box.shape, chunk.file, chunk.begin, chunk.length, chunk.crc});
  return Json::array({files, chunks}).dump();
}

SavedShards shards_from_text(const std::string& text) {
  const auto json = Json::parse(text);
  SavedShards shards;
  for (const auto& row : json[0])
    shards.files.push_back({row[0], row[1], digest_from_hex(row[2].get<std::string>()), row[3]});
  for (const auto& row : json[1])
    shards.chunks.push_back(
        {{row[0], row[1]}, {{row[2].get<Shape>(), row[3].get<Shape>()}, row[4], row[5], row[6], row[7]}});
  return shards;
}

}  // namespace conclave::checkpoint
