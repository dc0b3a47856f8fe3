// SPDX-License-Identifier: Apache-2.0
// MANIFEST.json: what a checkpoint is made of and how to tell whether it is whole. Reading it checks everything that
// can be checked without the files; it opens none.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checkpoint/box.h"
#include "checkpoint/digest.h"
#include "checkpoint/json_text.h"

namespace conclave::checkpoint {

// Bytes covered by one CRC32C of a file.
constexpr int64_t kBlockBytes = int64_t{8} << 20;
constexpr int64_t kManifestVersion = 1;

struct FileRecord {
  std::string name;  // in the checkpoint's folder
  int64_t size = 0;
  Digest digest;
  std::vector<uint32_t> blocks;  // CRC32C of each kBlockBytes, the last one shorter
};

struct ChunkRecord {
  Box box;
  int64_t file = 0;  // index into Manifest::files
  int64_t begin = 0;
  int64_t length = 0;
  uint32_t crc = 0;
};

struct TensorRecord {
  TensorKey key;
  std::string dtype;
  Shape shape;  // global, without padding
  Digest digest;
  std::vector<ChunkRecord> chunks;  // cover the shape exactly once
};

// The configuration that the state belongs to. A resume refuses another `model`, warns about another `training`, and
// ignores `runtime`.
struct ConfigRecord {
  Json model = Json::object();
  Json training = Json::object();
  Json runtime = Json::object();
};

struct Parent {
  int64_t step = 0;
  Digest manifest;
};

struct Manifest {
  std::string run;
  std::string attempt;
  int64_t step = 0;
  int64_t tokens = 0;            // consumed since step 0
  int64_t samples = 0;           // consumed since step 0
  std::optional<Parent> parent;  // the checkpoint that the run was last at
  Json environment = Json::object();
  Json layout = Json::object();
  ConfigRecord config;
  Json extra = Json::object();  // what the trainer needs besides tensors: windows, learning rate, data position
  Digest state;                 // state_digest over all tensors
  std::vector<FileRecord> files;
  std::vector<TensorRecord> tensors;  // ordered by key
};

// The file's text; it ends with the XXH3-128 of all that comes before the last key.
std::string manifest_text(const Manifest& manifest);
// Throws DataError, naming `where`, unless the text is whole, of a version we know, and consistent in itself.
Manifest parse_manifest(const std::string& text, const std::string& where);

// "model.layers: 4, now 6; ..." for each leaf that differs; empty when equal. What `saved` lacks was as in `defaults`.
std::string difference(const Json& saved, const Json& now, const Json& defaults = {});

}  // namespace conclave::checkpoint
