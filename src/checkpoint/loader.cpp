// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/loader.h"

#include <algorithm>
#include <map>

#include "checkpoint/agreement.h"
#include "checkpoint/crc32c.h"
#include "checkpoint/plan.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr int64_t kMaxManifest = int64_t{1} << 30;

// Where block `i` of a file is, for messages.
std::string range(const FileRecord& file, int64_t block) {
  return fmt::format("bytes {} to {}", block * kBlockBytes, std::min(file.size, (block + 1) * kBlockBytes) - 1);
}

void verify_bytes(const File& file, const FileRecord& record) {
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kBlockBytes, record.size)));
  DigestStream digest;
  for (int64_t block = 0; block < static_cast<int64_t>(record.blocks.size()); ++block) {
    const int64_t begin = block * kBlockBytes;
    const auto bytes = std::span(buffer).first(static_cast<size_t>(std::min(kBlockBytes, record.size - begin)));
    file.read_at(begin, bytes);
    const uint32_t crc = crc32c(0, bytes);
    if (crc != record.blocks[static_cast<size_t>(block)])
      throw DataError("{}: {} are damaged: CRC32C {:08x} where the manifest says {:08x}", file.where().string(),
                      range(record, block), crc, record.blocks[static_cast<size_t>(block)]);
    digest.update(bytes);
  }
  if (digest.finish() != record.digest)
    throw DataError("{}: damaged: XXH3-128 {} where the manifest says {}", file.where().string(), digest.finish().hex(),
                    record.digest.hex());
}

// The header of the file must describe the same parts as the manifest.
void verify_header(const SafetensorsFile& file, const Manifest& manifest, int64_t index) {
  std::map<int64_t, int64_t> parts;  // length by beginning; empty tensors share a beginning and need no check
  for (const auto& tensor : file.tensors())
    if (tensor.bytes > 0) parts[tensor.begin] = tensor.bytes;
  for (const auto& tensor : manifest.tensors)
    for (const auto& chunk : tensor.chunks) {
      if (chunk.file != index || chunk.length == 0) continue;
      const auto found = parts.find(chunk.begin);
      if (found == parts.end() || found->second != chunk.length)
        throw DataError("{}: its header has no part at byte {} of {} bytes, which the manifest names for {}",
                        file.where().string(), chunk.begin, chunk.length, tensor.key.name);
    }
}

void verify_file(const path& folder, const Manifest& manifest, int64_t index, bool full) {
  const auto& record = manifest.files[static_cast<size_t>(index)];
  auto file = File::open_beneath(folder, record.name);
  if (file.size() != record.size)
    throw DataError("{}: {} bytes where the manifest says {}", file.where().string(), file.size(), record.size);
  if (full) verify_bytes(file, record);
  verify_header(SafetensorsFile(std::move(file), NameRule::kOurs), manifest, index);
}

const TensorRecord* find(const Manifest& manifest, const TensorKey& key) {
  const auto found =
      std::lower_bound(manifest.tensors.begin(), manifest.tensors.end(), key,
                       [](const TensorRecord& tensor, const TensorKey& wanted) { return tensor.key < wanted; });
  return found != manifest.tensors.end() && found->key == key ? &*found : nullptr;
}

// A list for a message: the first few and how many more.
std::string few(const std::vector<std::string>& items) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(items.size(), 5); ++i) text += (i == 0 ? "" : ", ") + items[i];
  return items.size() > 5 ? fmt::format("{} and {} more", text, items.size() - 5) : text;
}

std::string shape_text(const Shape& shape) { return Json(shape).dump(); }

void check_present(const Manifest& manifest, const parallel::StateDict& state) {
  std::vector<std::string> missing;
  for (const auto& entry : state) {
    const auto* tensor = find(manifest, key_of(entry));
    if (tensor == nullptr) {
      missing.push_back(fmt::format("{} ({})", entry.name, entry.role));
      continue;
    }
    if (tensor->dtype != dtype_name(entry.dtype) || tensor->shape != entry.global_shape)
      throw ConfigError(
          "{} ({}) is {} {} in the checkpoint of step {} and {} {} in this run; the configuration differs from "
          "the one that was saved",
          entry.name, entry.role, tensor->dtype, shape_text(tensor->shape), manifest.step, dtype_name(entry.dtype),
          shape_text(entry.global_shape));
  }
  if (!missing.empty())
    throw ConfigError("the checkpoint of step {} lacks {} of the tensors this run needs: {}", manifest.step,
                      missing.size(), few(missing));
}

class PartReader {
 public:
  PartReader(const path& folder, const Manifest& manifest) : folder_(folder), manifest_(manifest) {}

  void fill(const parallel::StateEntry& entry) {
    const auto& tensor = *find(manifest_, key_of(entry));
    const Box wanted = box_of(entry);
    for (const auto& chunk : tensor.chunks) {
      const auto part = intersection(chunk.box, wanted);
      if (!part || chunk.length == 0) continue;
      if (chunk.box == wanted) {
        read(tensor, chunk, entry.data);
        continue;
      }
      buffer_.resize(static_cast<size_t>(chunk.length));  // bounded by the file's size, which the manifest check did
      read(tensor, chunk, buffer_);
      copy_part(*part, BoxBytes<const std::byte>{chunk.box, buffer_}, BoxBytes<std::byte>{wanted, entry.data},
                dtype_size(tensor.dtype));
    }
  }

 private:
  void read(const TensorRecord& tensor, const ChunkRecord& chunk, std::span<std::byte> out) {
    auto open = files_.find(chunk.file);
    if (open == files_.end())
      open =
          files_.emplace(chunk.file, File::open_beneath(folder_, manifest_.files[static_cast<size_t>(chunk.file)].name))
              .first;
    open->second.read_at(chunk.begin, out);
    if (const uint32_t crc = crc32c(0, out); crc != chunk.crc)
      throw DataError("{}: bytes {} to {} ({}) are damaged: CRC32C {:08x} where the manifest says {:08x}",
                      open->second.where().string(), chunk.begin, chunk.begin + chunk.length - 1, tensor.key.name, crc,
                      chunk.crc);
  }

  const path& folder_;
  const Manifest& manifest_;
  std::map<int64_t, File> files_;
  std::vector<std::byte> buffer_;
};

void check_digest(const Manifest& manifest, const TensorKey& key, const Digest& digest) {
  const auto& expected = find(manifest, key)->digest;
  if (digest != expected)
    throw DataError("{} ({}) of step {} has the digest {} in memory where the manifest says {}", key.name, key.role,
                    manifest.step, digest.hex(), expected.hex());
}

}  // namespace

std::string step_name(int64_t step) { return fmt::format("step-{:010}", step); }

std::vector<int64_t> list_steps(const path& checkpoints) {
  std::vector<int64_t> steps;
  std::error_code code;
  for (std::filesystem::directory_iterator it(checkpoints, code), end; !code && it != end; it.increment(code)) {
    const auto name = it->path().filename().string();
    const bool ours = name.size() == 15 && name.compare(0, 5, "step-") == 0 &&
                      name.find_first_not_of("0123456789", 5) == std::string::npos;
    if (ours) steps.push_back(std::stoll(name.substr(5)));
  }
  if (code && code != std::errc::no_such_file_or_directory)
    throw IoError("cannot list {}: {}", checkpoints.string(), code.message());
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

std::string read_manifest_text(const path& folder) {
  return read_text(File::open_beneath(folder, "MANIFEST.json"), kMaxManifest);
}

void verify_files(const comm::Group& group, const path& folder, const Manifest& manifest, bool full) {
  agree(group, [&] {
    for (int64_t i = group.rank(); i < static_cast<int64_t>(manifest.files.size()); i += group.size())
      verify_file(folder, manifest, i, full);
  });
}

void check_entries(const comm::Group& group, const Manifest& manifest, const parallel::StateDict& state, bool partial) {
  agree(group, [&] { check_present(manifest, state); });
  std::vector<int32_t> wanted(manifest.tensors.size());
  for (const auto& entry : state)
    wanted[static_cast<size_t>(find(manifest, key_of(entry)) - manifest.tensors.data())] = 1;
  group.all_reduce(std::span<int32_t>(wanted), comm::Reduce::kMax);
  std::vector<std::string> unused;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (wanted[i] == 0)
      unused.push_back(fmt::format("{} ({})", manifest.tensors[i].key.name, manifest.tensors[i].key.role));
  if (!partial && !unused.empty())
    throw ConfigError("the checkpoint of step {} has {} tensors that this run has no place for: {}", manifest.step,
                      unused.size(), few(unused));
}

void read_boxes(const comm::Group& group, const path& folder, const Manifest& manifest,
                const parallel::StateDict& boxes) {
  agree(group, [&] {
    PartReader reader(folder, manifest);
    for (const auto& box : boxes) reader.fill(box);
  });
}

const TensorRecord* find_tensor(const Manifest& manifest, const std::string& name, const std::string& role) {
  return find(manifest, {name, role});
}

void load_entries(const comm::Group& group, const path& folder, const Manifest& manifest,
                  const parallel::StateDict& state) {
  agree(group, [&] {
    PartReader reader(folder, manifest);
    for (const auto& entry : state) reader.fill(entry);
    for (const auto& entry : state)  // replicas; what `writes` is compared below, on all ranks together
      if (!entry.writes && is_whole(entry))
        check_digest(manifest, key_of(entry),
                     tensor_digest(key_of(entry), dtype_name(entry.dtype), entry.global_shape, entry.data));
  });
  const auto plan = make_plan(group, state);
  const auto digests = tensor_digests(group, plan, state);
  for (size_t i = 0; i < plan.size(); ++i) check_digest(manifest, plan[i].key, digests[i]);
  check(plan.size() != manifest.tensors.size() || combine(plan, digests) == manifest.state,
        "digest of the whole state");
}

}  // namespace conclave::checkpoint
