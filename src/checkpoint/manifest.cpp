// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/manifest.h"

#include <algorithm>
#include <set>

#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr const char* kFormat = "conclave-checkpoint";
constexpr std::string_view kTrailer = ",\"xxh3\":\"";

Json to_json(const FileRecord& file) {
  return {{"name", file.name}, {"size", file.size}, {"xxh3", file.digest.hex()}, {"crc32c", file.blocks}};
}

Json to_json(const ChunkRecord& chunk) {
  return {{"offset", chunk.box.offset}, {"shape", chunk.box.shape}, {"file", chunk.file},
          {"begin", chunk.begin},       {"length", chunk.length},   {"crc32c", chunk.crc}};
}

Json to_json(const TensorRecord& tensor) {
  Json chunks = Json::array();
  for (const auto& chunk : tensor.chunks) chunks.push_back(to_json(chunk));
  return {{"name", tensor.key.name}, {"role", tensor.key.role},     {"dtype", tensor.dtype},
          {"shape", tensor.shape},   {"xxh3", tensor.digest.hex()}, {"chunks", chunks}};
}

Json config_json(const Json& config) { return {{"xxh3", xxh3(config.dump()).hex()}, {"values", config}}; }

uint32_t crc_of(int64_t value, const std::string& where) {
  if (value > int64_t{0xFFFFFFFF}) throw DataError("{}: a CRC32C beyond 32 bits", where);
  return static_cast<uint32_t>(value);
}

FileRecord file_from(const Json& json, const std::string& where) {
  FileRecord file;
  file.name = text_field(json, "name", where);
  if (!name_is_ours(file.name) || file.name.front() == '.')
    throw DataError("{}: {} is no file name of a checkpoint", where, Json(file.name).dump(-1, ' ', true));
  file.size = count_field(json, "size", where);
  file.digest = digest_from_hex(text_field(json, "xxh3", where));
  for (const int64_t crc : counts_field(json, "crc32c", where)) file.blocks.push_back(crc_of(crc, where));
  const int64_t expected = file.size / kBlockBytes + (file.size % kBlockBytes != 0);
  if (static_cast<int64_t>(file.blocks.size()) != expected)
    throw DataError("{}: {} has {} block checksums where its size makes {}", where, file.name, file.blocks.size(),
                    expected);
  return file;
}

ChunkRecord chunk_from(const Json& json, const Manifest& manifest, int64_t item, const std::string& where) {
  ChunkRecord chunk;
  chunk.box = {counts_field(json, "offset", where), counts_field(json, "shape", where)};
  chunk.file = count_field(json, "file", where);
  chunk.begin = count_field(json, "begin", where);
  chunk.length = count_field(json, "length", where);
  chunk.crc = crc_of(count_field(json, "crc32c", where), where);
  if (chunk.file >= static_cast<int64_t>(manifest.files.size()))
    throw DataError("{}: refers to a file that is not listed", where);
  const auto& file = manifest.files[static_cast<size_t>(chunk.file)];
  if (chunk.begin > file.size || chunk.length > file.size - chunk.begin)
    throw DataError("{}: lies behind the end of {}", where, file.name);
  const auto elements = volume(chunk.box.shape);
  if (!elements || chunk.length % item != 0 || *elements != chunk.length / item)
    throw DataError("{}: {} bytes do not make its shape", where, chunk.length);
  return chunk;
}

TensorRecord tensor_from(const Json& json, const Manifest& manifest, const std::string& where) {
  TensorRecord tensor;
  tensor.key = {text_field(json, "name", where), text_field(json, "role", where)};
  if (!name_is_ours(tensor.key.name) || !name_is_ours(tensor.key.role))
    throw DataError("{}: {} is no tensor name", where, Json(tensor.key.name).dump(-1, ' ', true));
  const auto here = fmt::format("{}: tensor {} ({})", where, tensor.key.name, tensor.key.role);
  tensor.dtype = text_field(json, "dtype", here);
  const int64_t item = dtype_size(tensor.dtype);
  if (item == 0) throw DataError("{}: unknown element type", here);
  tensor.shape = counts_field(json, "shape", here);
  tensor.digest = digest_from_hex(text_field(json, "xxh3", here));
  const auto& chunks = field(json, "chunks", here);
  if (!chunks.is_array()) throw DataError("{}: 'chunks' is not a list", here);
  std::vector<Box> boxes;
  for (const auto& chunk : chunks) {
    tensor.chunks.push_back(chunk_from(chunk, manifest, item, here));
    boxes.push_back(tensor.chunks.back().box);
  }
  check_tiling(tensor.shape, boxes, here);
  return tensor;
}

Json config_from(const Json& config, const char* section, const std::string& where) {
  const auto& record = field(config, section, where);
  const auto& values = field(record, "values", where);
  if (xxh3(values.dump()).hex() != text_field(record, "xxh3", where))
    throw DataError("{}: the digest of the {} configuration does not match its values", where, section);
  return values;
}

void read_contents(const Json& json, Manifest& manifest, const std::string& where) {
  const auto list = [&](const char* key) -> const Json& {
    const auto& value = field(json, key, where);
    if (!value.is_array()) throw DataError("{}: '{}' is not a list", where, key);
    return value;
  };
  std::set<std::string> names;
  for (const auto& file : list("files")) {
    manifest.files.push_back(file_from(file, where));
    if (!names.insert(manifest.files.back().name).second)
      throw DataError("{}: file {} is listed twice", where, manifest.files.back().name);
  }
  std::vector<std::pair<TensorKey, Digest>> digests;
  for (const auto& tensor : list("tensors")) {
    manifest.tensors.push_back(tensor_from(tensor, manifest, where));
    const auto& key = manifest.tensors.back().key;
    if (!digests.empty() && !(digests.back().first < key))
      throw DataError("{}: tensor {} ({}) is out of order or listed twice", where, key.name, key.role);
    digests.emplace_back(key, manifest.tensors.back().digest);
  }
  if (state_digest(digests) != manifest.state)
    throw DataError("{}: the state digest does not match its tensors", where);
}

// Checks that the text ends with its own digest.
void check_trailer(const std::string& text, const std::string& where) {
  const size_t tail = kTrailer.size() + 32 + 3;  // ,"xxh3":"<32>"}\n
  const bool whole = text.size() > tail && text.compare(text.size() - tail, kTrailer.size(), kTrailer) == 0 &&
                     text.compare(text.size() - 3, 3, "\"}\n") == 0;
  if (!whole) throw DataError("{}: does not end with its checksum; it is cut off or changed", where);
  const std::string_view body(text.data(), text.size() - tail);
  const auto actual = xxh3(body).hex();
  if (text.compare(text.size() - 35, 32, actual) != 0)
    throw DataError("{}: its {} bytes have the checksum {} where the file says {}", where, body.size(), actual,
                    text.substr(text.size() - 35, 32));
}

}  // namespace

std::string manifest_text(const Manifest& manifest) {
  nlohmann::ordered_json json;
  json["format"] = kFormat;
  json["version"] = kManifestVersion;
  json["run"] = manifest.run;
  json["attempt"] = manifest.attempt;
  json["step"] = manifest.step;
  json["tokens"] = manifest.tokens;
  json["samples"] = manifest.samples;
  json["parent"] = nullptr;
  if (manifest.parent)
    json["parent"] = Json{{"step", manifest.parent->step}, {"manifest", manifest.parent->manifest.hex()}};
  json["environment"] = manifest.environment;
  json["layout"] = manifest.layout;
  json["config"] = Json{{"model", config_json(manifest.config.model)},
                        {"training", config_json(manifest.config.training)},
                        {"runtime", config_json(manifest.config.runtime)}};
  json["extra"] = manifest.extra;
  json["state"] = manifest.state.hex();
  Json files = Json::array(), tensors = Json::array();
  for (const auto& file : manifest.files) files.push_back(to_json(file));
  for (const auto& tensor : manifest.tensors) tensors.push_back(to_json(tensor));
  json["files"] = files;
  json["tensors"] = tensors;
  std::string text = json.dump();
  text.pop_back();  // the closing brace comes after the checksum
  return fmt::format("{}{}{}\"}}\n", text, kTrailer, xxh3(text).hex());
}

Manifest parse_manifest(const std::string& text, const std::string& where) {
  check_trailer(text, where);
  const auto json = parse_json(text, where);
  if (text_field(json, "format", where) != kFormat) throw DataError("{}: not a manifest of this program", where);
  if (const auto version = count_field(json, "version", where); version != kManifestVersion)
    throw DataError("{}: format version {}; this program reads version {}. Use the program that wrote it", where,
                    version, kManifestVersion);
  Manifest manifest;
  manifest.run = text_field(json, "run", where);
  manifest.attempt = text_field(json, "attempt", where);
  manifest.step = count_field(json, "step", where);
  manifest.tokens = count_field(json, "tokens", where);
  manifest.samples = count_field(json, "samples", where);
  if (const auto& parent = field(json, "parent", where); !parent.is_null())
    manifest.parent = {count_field(parent, "step", where), digest_from_hex(text_field(parent, "manifest", where))};
  manifest.environment = field(json, "environment", where);
  manifest.layout = field(json, "layout", where);
  const auto& config = field(json, "config", where);
  manifest.config = {config_from(config, "model", where), config_from(config, "training", where),
                     config_from(config, "runtime", where)};
  manifest.extra = field(json, "extra", where);
  manifest.state = digest_from_hex(text_field(json, "state", where));
  read_contents(json, manifest, where);
  return manifest;
}

std::string difference(const Json& saved, const Json& now, const Json& defaults) {
  if (saved == now) return "";
  if (!saved.is_structured() || !now.is_structured()) return fmt::format("{}, now {}", saved.dump(), now.dump());
  const auto before = saved.flatten(), after = now.flatten();
  const auto without = defaults.is_structured() ? defaults.flatten() : Json::object();
  std::set<std::string> keys;
  for (const auto* side : {&before, &after})
    for (const auto& [key, value] : side->items()) keys.insert(key);
  std::string text;
  for (const auto& key : keys) {
    const auto old_value = before.value(key, without.value(key, Json("absent")));
    const auto new_value = after.value(key, Json("absent"));
    if (old_value == new_value) continue;
    std::string name = key.substr(key.empty() ? 0 : 1);
    std::replace(name.begin(), name.end(), '/', '.');
    text += fmt::format("{}{}: {}, now {}", text.empty() ? "" : "; ", name, old_value.dump(), new_value.dump());
  }
  return text;
}

}  // namespace conclave::checkpoint
