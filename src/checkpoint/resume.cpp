// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/resume.h"

#include "checkpoint/agreement.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

// What every attempt to load needs.
struct Attempt {
  const comm::Group& group;
  const ResumeRequest& request;
  const parallel::StateDict& state;
  Log& log;
};

void check_config(const Attempt& attempt, const Manifest& manifest) {
  if (!attempt.request.check_config) return;
  const auto &now = attempt.request.config, &defaults = attempt.request.defaults;
  if (const auto text = difference(manifest.config.model, now.model, defaults.model); !text.empty())
    throw ConfigError(
        "the checkpoint of step {} belongs to another model: {}. Use the saved values, or another --run directory",
        manifest.step, text);
  if (const auto text = difference(manifest.config.training, now.training, defaults.training); !text.empty())
    attempt.log.warn("training configuration changed since step {}: {}", manifest.step, text);
}

// Collective. Throws ConfigError when the checkpoint is whole but not for us, DataError or IoError when it is damaged.
Resumed load(const Attempt& attempt, const std::filesystem::path& folder, std::optional<int64_t> step) {
  const auto where = (folder / "MANIFEST.json").string();
  const auto text = from_rank_zero(attempt.group, [&] { return read_manifest_text(folder); });
  auto manifest = parse_manifest(text, where);  // the same text, so the same error, on every rank
  if (step && manifest.step != *step) throw DataError("{}: is of step {}, not of step {}", where, manifest.step, *step);
  if (step && !attempt.request.run_id.empty() && manifest.run != attempt.request.run_id)
    throw DataError("{}: belongs to run {}, this is run {}", where, manifest.run, attempt.request.run_id);
  check_config(attempt, manifest);
  check_entries(attempt.group, manifest, attempt.state, attempt.request.load.partial);
  verify_files(attempt.group, folder, manifest, attempt.request.load.full);
  load_entries(attempt.group, folder, manifest, attempt.state);
  attempt.log.info("loaded {}: {} tensors, state digest {} matches the manifest", folder.string(),
                   manifest.tensors.size(), manifest.state.hex());
  return {std::move(manifest), folder, xxh3(text)};
}

bool is_damage(const Error& error) { return error.code() == ExitCode::kData || error.code() == ExitCode::kIo; }

// Collective. The newest valid one of `steps`, which are ordered newest first.
Resumed load_first_valid(const Attempt& attempt, const std::filesystem::path& checkpoints,
                         const std::vector<int64_t>& steps) {
  std::string reasons;
  for (const int64_t step : steps) {
    try {
      return load(attempt, checkpoints / step_name(step), step);
    } catch (const Error& error) {  // the same one on every rank, so all go on to the next together
      if (!is_damage(error)) throw;
      attempt.log.warn("checkpoint {} is damaged and not used: {}", step_name(step), error.what());
      reasons += fmt::format("\n  {}: {}", step_name(step), error.what());
    }
  }
  throw NoCheckpointError(
      "none of the {} checkpoints in {} is valid:{}\nRestore one from a backup, or start again in another --run "
      "directory",
      steps.size(), checkpoints.string(), reasons);
}

std::vector<int64_t> steps_of(const comm::Group& group, const std::filesystem::path& checkpoints) {
  const auto text = from_rank_zero(group, [&] { return Json(list_steps(checkpoints)).dump(); });
  return Json::parse(text).get<std::vector<int64_t>>();
}

// Collective. A path the user gave: a run directory or one checkpoint.
Resumed load_path(const Attempt& attempt, const std::filesystem::path& where) {
  const auto kind = from_rank_zero(attempt.group, [&] {
    if (std::filesystem::is_directory(where / "checkpoints")) return std::string("run");
    if (std::filesystem::exists(where / "MANIFEST.json")) return std::string("checkpoint");
    throw NoCheckpointError("{} is neither a run directory with checkpoints nor a checkpoint", where.string());
  });
  if (kind == "checkpoint") {
    try {
      return load(attempt, where, std::nullopt);
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      throw NoCheckpointError("checkpoint {} is not valid: {}", where.string(), error.what());
    }
  }
  const auto steps = steps_of(attempt.group, where / "checkpoints");
  if (steps.empty()) throw NoCheckpointError("{} has no checkpoints", where.string());
  return load_first_valid(attempt, where / "checkpoints", steps);
}

}  // namespace

std::optional<Resumed> resume(const comm::Group& group, const std::filesystem::path& run, const ResumeRequest& request,
                              const parallel::StateDict& state, Log& log) {
  const Attempt attempt{group, request, state, log};
  const auto checkpoints = run / "checkpoints";
  const auto steps = steps_of(group, checkpoints);
  const bool by_path = request.mode != "auto" && request.mode != "must" && request.mode != "never";
  if (request.mode == "never" && !steps.empty())
    throw ConfigError(
        "checkpoint.resume is 'never', but {} holds {} checkpoints; a fresh run would mix with them. Use another "
        "--run directory, or resume: auto",
        checkpoints.string(), steps.size());
  if (request.mode == "must" && steps.empty())
    throw NoCheckpointError("checkpoint.resume is 'must', but {} holds no checkpoint", checkpoints.string());
  if (by_path && steps.empty()) {
    ResumeRequest any_run = request;
    any_run.run_id.clear();
    return load_path({group, any_run, state, log}, request.mode);
  }
  if (steps.empty()) return std::nullopt;
  if (by_path) log.info("resume: {} is not used; this run has checkpoints of its own", request.mode);
  return load_first_valid(attempt, checkpoints, steps);
}

Resumed load_newest(const comm::Group& group, const std::filesystem::path& where, const ResumeRequest& request,
                    const parallel::StateDict& state, Log& log) {
  return load_path({group, request, state, log}, where);
}

}  // namespace conclave::checkpoint
