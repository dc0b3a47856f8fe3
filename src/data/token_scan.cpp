// SPDX-License-Identifier: Apache-2.0
// The parts of IndexedReader that look at a whole file: sidecar, fingerprint, token range and its cache.
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/indexed_dataset.h"
#include "data/staged_file.h"

namespace conclave::data {
namespace {

using Json = nlohmann::json;

constexpr int64_t kBlockBytes = 64 * 1024;
constexpr int64_t kSampledBlocks = 64;
constexpr int64_t kLargestJson = 1 << 20;

// nullopt for a file that is no JSON object. Sidecars are small: a large one is not ours.
std::optional<Json> read_json(const std::string& path) {
  const InputFile file(path);
  if (file.size() > kLargestJson) return std::nullopt;
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  return json;
}

int64_t integer(const Json& json, const std::string& key, const std::string& path) {
  const bool whole = json.contains(key) && json[key].is_number_integer();
  const int64_t value = whole ? json[key].get<int64_t>() : -1;
  if (value < 0) throw DataError("{}: \"{}\" must be a whole number >= 0; tokenize again to rewrite it", path, key);
  return value;
}

struct HashState {
  HashState() : state(XXH3_createState(), &XXH3_freeState) {
    check(state != nullptr, "memory for a hash state");
    XXH3_128bits_reset(state.get());
  }
  void add(std::span<const std::byte> bytes) { XXH3_128bits_update(state.get(), bytes.data(), bytes.size()); }
  void add(int64_t value) { add(std::as_bytes(std::span(&value, 1))); }
  void add(const InputFile& file, int64_t offset, int64_t count) {
    std::vector<std::byte> block(static_cast<size_t>(std::min(count, kBlockBytes)));
    for (int64_t done = 0; done < count; done += kBlockBytes) {
      const auto part = std::span(block).first(static_cast<size_t>(std::min(kBlockBytes, count - done)));
      file.read_at(offset + done, part);
      add(part);
    }
  }
  std::string hex() const {
    const auto hash = XXH3_128bits_digest(state.get());
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state;
};

// The largest token that an earlier scan of the same bytes found. Whatever is wrong with the cache means: scan again.
std::optional<int64_t> cached_maximum(const std::string& path, const std::string& key) {
  try {
    const auto json = read_json(path);
    if (!json || json->value("scanned", "") != key) return std::nullopt;
    return json->at("largest_token").get<int64_t>();
  } catch (const Error&) {
    return std::nullopt;  // not there, not readable, no regular file
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

std::string to_json(const TokenFileInfo& info) {
  nlohmann::ordered_json json;
  json["tokenizer_hash"] = info.tokenizer_hash;
  json["vocab_size"] = info.vocab_size;
  json["tokens"] = info.tokens;
  json["documents"] = info.documents;
  if (info.end_of_document)
    json["end_of_document"] = *info.end_of_document;
  else
    json["end_of_document"] = nullptr;
  return json.dump(2) + "\n";
}

void IndexedReader::read_info() {
  const std::string path = prefix_ + ".json";
  std::error_code none;
  if (!std::filesystem::exists(path, none)) return;
  const auto json = read_json(path);
  if (!json)
    throw DataError("{}: is not the JSON object that describes {}.bin; tokenize again or remove it", path, prefix_);
  TokenFileInfo info;
  if (!json->contains("tokenizer_hash") || !(*json)["tokenizer_hash"].is_string())
    throw DataError("{}: \"tokenizer_hash\" must be a string; tokenize again to rewrite it", path);
  info.tokenizer_hash = (*json)["tokenizer_hash"].get<std::string>();
  info.vocab_size = integer(*json, "vocab_size", path);
  info.tokens = integer(*json, "tokens", path);
  info.documents = integer(*json, "documents", path);
  if (json->contains("end_of_document") && !(*json)["end_of_document"].is_null())
    info.end_of_document = integer(*json, "end_of_document", path);
  if (info.tokens != tokens_ || info.documents != documents_)
    throw DataError(
        "{}: speaks of {} tokens in {} documents, {} has {} in {}; the files do not belong together: copy or "
        "tokenize all three again",
        path, info.tokens, info.documents, idx_.path(), tokens_, documents_);
  info_ = std::move(info);
}

std::string IndexedReader::fingerprint() const {
  HashState hash;
  hash.add(idx_.size());
  hash.add(bin_.size());
  hash.add(idx_, 0, idx_.size());
  if (bin_.size() <= kSampledBlocks * kBlockBytes) {
    hash.add(bin_, 0, bin_.size());
    return hash.hex();
  }
  const int64_t gap = (bin_.size() - kBlockBytes) / (kSampledBlocks - 1);  // the first block and the last one included
  for (int64_t block = 0; block < kSampledBlocks - 1; ++block) hash.add(bin_, block * gap, kBlockBytes);
  hash.add(bin_, bin_.size() - kBlockBytes, kBlockBytes);
  return hash.hex();
}

int32_t IndexedReader::scan_tokens() const {
  std::vector<int32_t> block(static_cast<size_t>(std::min(tokens_, int64_t{1} << 18)));
  int32_t largest = 0;
  for (int64_t first = 0; first < tokens_; first += static_cast<int64_t>(block.size())) {
    const auto part =
        std::span(block).first(static_cast<size_t>(std::min(static_cast<int64_t>(block.size()), tokens_ - first)));
    read_tokens(first, part);
    largest = std::max(largest, *std::max_element(part.begin(), part.end()));
  }
  return largest;
}

void IndexedReader::check_tokens(int64_t vocab_size) {
  check(vocab_size > 0 && vocab_size <= int64_t{1} << 31, "a vocabulary size of 1 ... 2^31");
  limit_ = vocab_size;
  const std::string cache = prefix_ + ".ok";
  const std::string key = fmt::format("{}-{}", fingerprint(), bin_.modified());
  const auto known = cached_maximum(cache, key);
  if (known && *known >= 0 && *known < vocab_size) return;
  const int32_t largest = scan_tokens();
  const Json json = {{"scanned", key}, {"largest_token", largest}};
  try {
    StagedFile file(cache);
    const std::string text = json.dump();
    file.write(std::as_bytes(std::span(text)));
    file.finish();
    file.publish();
  } catch (const IoError&) {
    // A read-only or full directory: the scan runs again next time, nothing is lost but that.
  }
}

}  // namespace conclave::data
