// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/agreement.h"

#include <fmt/format.h>

#include <span>

#include "core/error.h"

namespace conclave::checkpoint {
namespace {

struct Outcome {
  int64_t code = 0;
  std::string message;
};

Outcome outcome_of(const std::function<void()>& work) {
  try {
    work();
    return {};
  } catch (const CommError&) {
    throw;  // the group is gone; asking it to agree would wait for ever
  } catch (const Error& error) {
    return {static_cast<int64_t>(error.code()), error.what()};
  } catch (const std::exception& error) {
    return {static_cast<int64_t>(ExitCode::kBug), error.what()};
  }
}

}  // namespace

void throw_error(int code, const std::string& message) {
  switch (static_cast<ExitCode>(code)) {
    case ExitCode::kUsage:
      throw UsageError("{}", message);
    case ExitCode::kData:
      throw DataError("{}", message);
    case ExitCode::kOwned:
      throw OwnedError("{}", message);
    case ExitCode::kIo:
      throw IoError("{}", message);
    case ExitCode::kPeerLost:
      throw CommError("{}", message);
    case ExitCode::kConfig:
      throw ConfigError("{}", message);
    case ExitCode::kNumeric:
      throw NumericError("{}", message);
    case ExitCode::kNoCheckpoint:
      throw NoCheckpointError("{}", message);
    default:
      throw BugError("{}", message);
  }
}

void agree(const comm::Group& group, const std::function<void()>& work) {
  const auto mine = outcome_of(work);
  const auto codes = group.all_gather_value(mine.code);
  int first = 0;
  while (first < group.size() && codes[first] == 0) ++first;
  if (first == group.size()) return;
  const auto messages = group.all_gather_text(mine.message);
  throw_error(static_cast<int>(codes[first]),
              group.size() == 1 ? messages[0] : fmt::format("rank {}: {}", first, messages[first]));
}

std::string from_rank_zero(const comm::Group& group, const std::function<std::string()>& work) {
  std::string text;
  agree(group, [&] {
    if (group.rank() == 0) text = work();
  });
  auto size = static_cast<int64_t>(text.size());
  group.broadcast(std::span<int64_t>(&size, 1), 0);
  text.resize(static_cast<size_t>(size));
  group.broadcast(std::span<char>(text), 0);
  return text;
}

}  // namespace conclave::checkpoint
