// SPDX-License-Identifier: Apache-2.0
// Reads one committed checkpoint: verifies its files and fills state by intersecting boxes, so the ranks that load need
// not be those that saved. Chooses nothing and repairs nothing; see resume.h.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "parallel/state_dict.h"

namespace conclave::checkpoint {

struct LoadOptions {
  // Every byte of every file against its checksums before any is used; otherwise sizes and headers only. Either way
  // each byte that is loaded is checked while it is read.
  bool full = true;
  // Accept a checkpoint with more tensors than are asked for (weights without optimizer state).
  bool partial = false;
};

// "step-0000001200".
std::string step_name(int64_t step);
// The steps of all `step-NNNNNNNNNN` entries in `checkpoints`, largest first, whatever they are. Other names are
// ignored.
std::vector<int64_t> list_steps(const std::filesystem::path& checkpoints);

// The text of `folder`/MANIFEST.json, for parse_manifest. Not collective.
std::string read_manifest_text(const std::filesystem::path& folder);

// Collective. Every file of the checkpoint is verified once, the files spread over the ranks. Throws DataError or
// IoError on all ranks, naming file, byte range and reason.
void verify_files(const comm::Group& group, const std::filesystem::path& folder, const Manifest& manifest, bool full);

// Collective. Throws ConfigError on all ranks, before anything is read, unless each entry is in the checkpoint with its
// type and global shape, and (unless `partial`) each tensor of the checkpoint is asked for by some rank.
void check_entries(const comm::Group& group, const Manifest& manifest, const parallel::StateDict& state, bool partial);

// Collective. Fills the entries' bytes, then digests what is in memory and compares it, tensor by tensor and in total,
// with the manifest. Throws DataError or IoError on all ranks; the entries' bytes are then undefined.
void load_entries(const comm::Group& group, const std::filesystem::path& folder, const Manifest& manifest,
                  const parallel::StateDict& state);

// Collective. Fills the entries' bytes, which may be any boxes of the tensors that they name by name, role and global
// shape; several may overlap. Every part that is read is checked against its checksum, nothing is digested. Throws
// DataError or IoError on all ranks.
void read_boxes(const comm::Group& group, const std::filesystem::path& folder, const Manifest& manifest,
                const parallel::StateDict& boxes);

// The tensor of that name and role; nothing if there is none.
const TensorRecord* find_tensor(const Manifest& manifest, const std::string& name, const std::string& role);

}  // namespace conclave::checkpoint
