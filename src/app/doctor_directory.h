// SPDX-License-Identifier: Apache-2.0
// Whether all ranks can write to the run directory and see each other's files there, as checkpoints need.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "comm/group.h"

namespace conclave::app {

struct DirectoryFigures {
  std::vector<std::string> problems;     // by rank: why it cannot write there; empty where it can
  std::vector<std::vector<int>> misses;  // by rank: the ranks whose files it does not see within `patience` seconds
  bool shared() const;                   // everybody writes and sees everybody
};

// Every rank writes a file into `directory`, looks for all others, and removes its own; a directory that had to be made
// is removed again. Collective; the same on all ranks.
DirectoryFigures probe_directory(const comm::Group& group, const std::filesystem::path& directory, double patience = 5);

}  // namespace conclave::app
