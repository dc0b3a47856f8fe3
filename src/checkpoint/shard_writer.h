// SPDX-License-Identifier: Apache-2.0
// Writes one rank's part of the state into safetensors files, taking every checksum from the memory that is being
// saved, and makes the files durable. Knows nothing of other ranks or of commits.
#pragma once

#include "checkpoint/manifest.h"
#include "core/failpoints.h"
#include "parallel/state_dict.h"

namespace conclave::checkpoint {

struct SavedChunk {
  TensorKey key;
  ChunkRecord chunk;  // file: index into SavedShards::files
};

struct SavedShards {
  std::vector<FileRecord> files;
  std::vector<SavedChunk> chunks;
};

// Writes rank-NNNNN.safetensors (then -01, -02, ... whenever a file would pass `max_file_bytes`) into `folder`, entries
// with `writes` only. Throws IoError; a file that failed is left behind for the caller to remove with the folder.
// Failpoints, per file: file-open, header, mid-chunk (per block), before-file-fsync, after-file-fsync.
SavedShards write_shards(const std::filesystem::path& folder, int rank, const parallel::StateDict& state,
                         int64_t max_file_bytes, Failpoints& failpoints);

// As text and back, to bring them to rank 0.
std::string shards_text(const SavedShards& shards);
SavedShards shards_from_text(const std::string& text);

}  // namespace conclave::checkpoint
