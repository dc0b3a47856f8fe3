// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/run_directory.h"

#include <chrono>
#include <functional>
#include <thread>

#include "checkpoint/agreement.h"
#include "checkpoint/file.h"
#include "checkpoint/json_text.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr const char* kFormat = "conclave-run";
constexpr int64_t kVersion = 1;

void make_folders(const path& where) {
  std::error_code code;
  std::filesystem::create_directories(where / "checkpoints", code);
  if (code || !std::filesystem::is_directory(where / "checkpoints"))
    throw IoError("cannot create the run directory {}: {}", where.string(), code ? code.message() : "not a directory");
  sync_folder(where);
  sync_folder(where.parent_path());
}

// Somebody's documents are no place for a run; what a start cut short may have left is.
void refuse_foreign(const path& where) {
  if (std::filesystem::exists(std::filesystem::symlink_status(where / "RUN.json"))) return;
  for (const auto& entry : std::filesystem::directory_iterator(where)) {
    const auto name = entry.path().filename().string();
    if (name == "checkpoints" || name == "LOCK" || name.ends_with(".tmp")) continue;
    throw DataError(
        "{} is not the directory of a run: it has no RUN.json, but holds {}\n  Give a new or an empty --run "
        "directory.",
        where.string(), name);
  }
}

// The identity of the folder; of several processes that start at once, one gives it.
std::string read_or_create_id(const path& where) {
  const auto file = where / "RUN.json";
  if (!std::filesystem::exists(std::filesystem::symlink_status(file))) {
    const Json json = {{"format", kFormat}, {"version", kVersion}, {"run", random_id()}};
    create_file_atomically(file, json.dump(2) + "\n");
  }
  const auto json = parse_json(read_text(File::open_beneath(where, "RUN.json"), 64 << 10), file.string());
  if (text_field(json, "format", file.string()) != kFormat || count_field(json, "version", file.string()) != kVersion)
    throw DataError("{} is not of a run of this version; use another --run directory", file.string());
  return text_field(json, "run", file.string());
}

// Adds to what went wrong what to do about it.
void advise(const std::function<void()>& work) {
  try {
    work();
  } catch (const IoError& error) {
    throw IoError("{}. The run directory must be writable and have room; mend that, or name another one with --run",
                  error.what());
  }
}

// What rank 0 wrote must be what this rank reads.
void check_shared(const path& where, const std::string& attempt, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    try {
      const auto text = read_text(File::open_beneath(where, "LOCK"), 64 << 10);
      if (text.find(attempt) != std::string::npos) return;
    } catch (const IoError&) {  // not visible yet on this host
    }
    if (std::chrono::steady_clock::now() > end)
      throw IoError("{} on this rank is not the folder that rank 0 uses; all ranks need one shared file system",
                    where.string());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

RunDirectory::RunDirectory(const comm::Group& group, const path& where, const RunDirectoryOptions& options, Log& log)
    : where_(std::filesystem::absolute(where).lexically_normal()) {
  if (!where_.has_filename()) where_ = where_.parent_path();
  const auto ids = from_rank_zero(group, [&] {
    advise([&] {
      if (std::filesystem::is_directory(where_)) refuse_foreign(where_);
      make_folders(where_);
      run_id_ = read_or_create_id(where_);
      lock_ = std::make_unique<Lock>(where_, run_id_, options.lock, log);
    });
    return Json::array({run_id_, lock_->attempt()}).dump();
  });
  const auto list = Json::parse(ids);
  run_id_ = list[0].get<std::string>();
  attempt_ = list[1].get<std::string>();
  agree(group, [&] { check_shared(where_, attempt_, options.visible_seconds); });
}

void RunDirectory::check_still_ours() const {
  if (lock_) lock_->check_still_ours();
}

void RunDirectory::write(const comm::Group& group, const std::string& name, const std::string& text) const {
  agree(group, [&] {
    if (group.rank() == 0) advise([&] { write_file_atomically(where_ / name, text); });
  });
}

}  // namespace conclave::checkpoint
