// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/store.h"

#include <fcntl.h>
#include <stdio.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <map>

#include "checkpoint/agreement.h"
#include "checkpoint/file.h"
#include "checkpoint/loader.h"
#include "checkpoint/retention.h"
#include "checkpoint/shard_writer.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

template <typename T>
int64_t first_not_finite(std::span<const std::byte> bytes) {
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + i, sizeof(T));
    if (!std::isfinite(value)) return static_cast<int64_t>(i / sizeof(T));
  }
  return -1;
}

// A checkpoint with a NaN in it would be the one that every resume takes.
void check_finite(const parallel::StateDict& state, int64_t step) {
  for (const auto& entry : state) {
    if (!entry.writes || entry.role == "buffer") continue;
    int64_t at = -1;
    if (entry.dtype == comm::DType::kFloat32) at = first_not_finite<float>(entry.data);
    if (entry.dtype == comm::DType::kFloat64) at = first_not_finite<double>(entry.data);
    if (at >= 0)
      throw NumericError("{} ({}) holds a value that is not finite at element {} of its box; step {} is not saved",
                         entry.name, entry.role, at, step);
  }
}

// All ranks must be about to save the same thing.
void check_same(const comm::Group& group, const SaveContents& contents, const std::string& attempt) {
  const auto mine = Json::array({contents.step, contents.tokens, contents.samples, attempt, contents.config.model,
                                 contents.config.training})
                        .dump();
  const auto all = group.all_gather_text(mine);
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      throw BugError("ranks disagree about what to save: rank 0 has {}, rank {} has {}", all[0], rank, all[rank]);
}

// Puts `from` in the place of `to`, which may exist, without a moment at which neither is there (where the system can).
void replace_folder(const path& from, const path& to, const path& trash) {
  if (!std::filesystem::exists(std::filesystem::symlink_status(to))) return rename_file(from, to);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return rename_file(from, trash);
  rename_file(to, trash);
  rename_file(from, to);
}

void merge(Manifest& manifest, const SavedShards& shards) {
  const auto first = static_cast<int64_t>(manifest.files.size());
  manifest.files.insert(manifest.files.end(), shards.files.begin(), shards.files.end());
  std::map<TensorKey, TensorRecord*> tensors;
  for (auto& tensor : manifest.tensors) tensors[tensor.key] = &tensor;
  for (auto [key, chunk] : shards.chunks) {
    chunk.file += first;
    tensors.at(key)->chunks.push_back(chunk);
  }
}

bool is_of_attempt(const path& folder, const std::string& attempt) {
  try {
    return parse_manifest(read_manifest_text(folder), folder.string()).attempt == attempt;
  } catch (const Error&) {  // not there, or not whole
    return false;
  }
}

StoreOptions checked(const StoreOptions& options) {
  if (options.keep_last < 2)
    throw ConfigError("checkpoint.keep_last is {}; at least 2 are kept, so that a damaged newest one has a predecessor",
                      options.keep_last);
  return options;
}

}  // namespace

Store::Store(comm::Group group, const path& where, const StoreOptions& options, Failpoints& failpoints, Log& log)
    : group_(std::move(group)),
      options_(checked(options)),
      failpoints_(failpoints),
      log_(log),
      directory_(group_, where, options_.directory, log) {
  agree(group_, [&] {
    if (group_.rank() != 0) return;
    sweep_temporaries(directory_.where());
    sweep_leftovers(directory_.checkpoints(), directory_.attempt(), log_);
  });
}

path Store::staging(int64_t step) const {
  return directory_.checkpoints() / fmt::format(".staging-{:010}-{}", step, directory_.attempt());
}

Saved Store::save(const SaveContents& contents, const parallel::StateDict& state) {
  const auto start = std::chrono::steady_clock::now();
  check_same(group_, contents, directory_.attempt());
  agree(group_, [&] { check_finite(state, contents.step); });
  const auto plan = make_plan(group_, state);
  const int64_t bytes = total_bytes(plan);
  auto manifest = describe(contents, plan, tensor_digests(group_, plan, state));
  try {
    prepare(contents.step, bytes);
    write_files(manifest, plan, state);
    commit(manifest);
  } catch (const Error& error) {
    if (error.code() == ExitCode::kPeerLost) throw;
    if (group_.rank() == 0)
      remove_tree(staging(contents.step));  // every rank has closed its files: it met the same error
    if (error.code() != ExitCode::kIo) throw;
    throw IoError(
        "step {} was not saved in {}: {} (the checkpoint has {} bytes). Earlier checkpoints are untouched; make room "
        "or "
        "mend the disk, then run the same command again",
        contents.step, directory_.checkpoints().string(), error.what(), bytes);
  }
  finish(manifest);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return {directory_.checkpoints() / step_name(contents.step), manifest.state, bytes, seconds.count()};
}

void Store::prepare(int64_t step, int64_t bytes) {
  agree(group_, [&] {
    if (group_.rank() != 0) return;
    directory_.check_still_ours();
    if (const int64_t free = free_bytes(directory_.checkpoints()); free / 6 < bytes / 5)
      throw IoError("too little space: a save wants 1.2 times its size free, and {} bytes are", free);
    failpoints_.hit("staging-mkdir");
    remove_tree(staging(step));  // of an earlier save of this attempt that failed
    std::error_code code;
    std::filesystem::create_directory(staging(step), code);
    if (code) throw IoError("cannot create {}: {}", staging(step).string(), code.message());
    sync_folder(directory_.checkpoints());
  });
}

Manifest Store::describe(const SaveContents& contents, const Plan& plan, const std::vector<Digest>& digests) const {
  Manifest manifest;
  manifest.run = directory_.run_id();
  manifest.attempt = directory_.attempt();
  manifest.step = contents.step;
  manifest.tokens = contents.tokens;
  manifest.samples = contents.samples;
  manifest.parent = parent_;
  manifest.environment = contents.environment;
  manifest.layout = contents.layout;
  manifest.config = contents.config;
  manifest.extra = contents.extra;
  manifest.state = combine(plan, digests);
  for (size_t i = 0; i < plan.size(); ++i)
    manifest.tensors.push_back({plan[i].key, plan[i].dtype, plan[i].shape, digests[i], {}});
  return manifest;
}

void Store::write_files(Manifest& manifest, const Plan& plan, const parallel::StateDict& state) {
  SavedShards mine;
  agree(group_, [&] {
    mine = write_shards(staging(manifest.step), group_.rank(), state, options_.max_file_bytes, failpoints_);
    failpoints_.hit("gather");
  });
  for (const auto& text : group_.all_gather_text(shards_text(mine))) merge(manifest, shards_from_text(text));
}

void Store::commit(const Manifest& manifest) {
  agree(group_, [&] {
    if (group_.rank() != 0) return;
    const auto folder = staging(manifest.step);
    const auto text = manifest_text(manifest);
    failpoints_.hit("before-manifest");
    auto file = File::create(folder / "MANIFEST.json.tmp");
    const auto bytes = std::as_bytes(std::span(text));
    file.write_at(0, bytes.first(bytes.size() / 2));
    failpoints_.hit("mid-manifest");
    file.write_at(static_cast<int64_t>(bytes.size() / 2), bytes.subspan(bytes.size() / 2));
    file.sync();
    file.close();
    rename_file(folder / "MANIFEST.json.tmp", folder / "MANIFEST.json");
    sync_folder(folder);
    failpoints_.hit("after-manifest");
    directory_.check_still_ours();
    failpoints_.hit("before-dir-rename");
    publish(manifest.step);
  });
}

// The commit point. A network file system may report an error for a rename that happened, so the outcome is looked up.
void Store::publish(int64_t step) {
  const auto target = directory_.checkpoints() / step_name(step);
  const auto trash = directory_.checkpoints() / fmt::format(".trash-{:010}-{}", step, directory_.attempt());
  try {
    replace_folder(staging(step), target, trash);
    sync_folder(directory_.checkpoints());
    failpoints_.hit("after-dir-rename");
  } catch (const IoError& error) {
    if (!is_of_attempt(target, directory_.attempt())) throw;
    log_.warn("{} is committed although the system reported: {}", target.string(), error.what());
  }
  remove_tree(trash);
}

// After the commit. Nothing here can undo it, so errors of the disk are warnings.
void Store::finish(const Manifest& manifest) {
  const auto folder = directory_.checkpoints() / step_name(manifest.step);
  parent_ = Parent{manifest.step, {}};
  passed_over_.erase(manifest.step);
  try {
    const auto digest = from_rank_zero(group_, [&] {
      failpoints_.hit("mid-latest");
      write_file_atomically(directory_.checkpoints() / "LATEST", step_name(manifest.step) + "\n");
      return xxh3(read_manifest_text(folder)).hex();
    });
    parent_->manifest = digest_from_hex(digest);
    verify_files(group_, folder, manifest, true);
    agree(group_, [&] {
      if (group_.rank() == 0)
        retire_old(directory_.checkpoints(), {manifest.step, options_.keep_last, passed_over_}, directory_.attempt(),
                   failpoints_);
    });
  } catch (const Error& error) {
    if (error.code() != ExitCode::kIo && error.code() != ExitCode::kData) throw;
    log_.warn("step {} is saved, but tidying up failed and older checkpoints stay: {}", manifest.step, error.what());
  }
}

std::optional<Manifest> Store::resume(ResumeRequest request, const parallel::StateDict& state) {
  request.run_id = directory_.run_id();
  auto resumed = checkpoint::resume(group_, directory_.where(), request, state, log_);
  if (!resumed) return std::nullopt;
  parent_ = Parent{resumed->manifest.step, resumed->digest};
  if (group_.rank() == 0)
    for (const int64_t step : list_steps(directory_.checkpoints()))
      if (step > resumed->manifest.step) passed_over_.insert(step);
  return std::move(resumed->manifest);
}

}  // namespace conclave::checkpoint
