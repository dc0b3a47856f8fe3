// SPDX-License-Identifier: Apache-2.0
// A run's folder: its identity (RUN.json), its lease (LOCK), and the small files that describe it. Rank 0 does the
// work; every rank learns the outcome, and that it sees the same folder.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/lock.h"
#include "comm/group.h"

namespace conclave::checkpoint {

struct RunDirectoryOptions {
  LockTimes lock;
  // How long a rank waits for rank 0's files to appear before it says that the folder is not shared.
  double visible_seconds = 30;
};

class RunDirectory {
 public:
  // Collective. Creates the folder, or opens it, and takes the lease. Throws on all ranks: OwnedError if a live run has
  // it, DataError if it is not a run's folder, IoError if it cannot be used or ranks do not share it.
  RunDirectory(const comm::Group& group, const std::filesystem::path& where, const RunDirectoryOptions& options,
               Log& log);

  const std::filesystem::path& where() const { return where_; }
  std::filesystem::path checkpoints() const { return where_ / "checkpoints"; }
  const std::string& run_id() const { return run_id_; }    // kept for the life of the folder
  const std::string& attempt() const { return attempt_; }  // new with every start

  // Not collective; does nothing on ranks other than 0. Throws OwnedError if the lease is lost.
  void check_still_ours() const;
  // Collective. Replaces a small file of the folder, such as config.resolved.yaml or env.json, by rank 0's text.
  void write(const comm::Group& group, const std::string& name, const std::string& text) const;

 private:
  std::filesystem::path where_;
  std::string run_id_;
  std::string attempt_;
  std::unique_ptr<Lock> lock_;  // rank 0 only
};

}  // namespace conclave::checkpoint
