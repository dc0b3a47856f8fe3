// SPDX-License-Identifier: Apache-2.0
#include "text/input_files.h"

#include <fcntl.h>
#include <glob.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <system_error>

#include "core/error.h"
#include "text/byte_stream.h"

namespace conclave::text {
namespace {

namespace fs = std::filesystem;

bool has_suffix(const std::string& path, const std::vector<std::string_view>& suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](std::string_view suffix) { return path.ends_with(suffix); });
}

std::string listed(const std::vector<std::string_view>& suffixes) {
  return fmt::format("{}", fmt::join(suffixes, ", "));
}

std::vector<std::string> files_below(const std::string& directory, const std::vector<std::string_view>& suffixes) {
  std::vector<std::string> files;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(directory)) {
      if (entry.is_regular_file() && has_suffix(entry.path().string(), suffixes))
        files.push_back(entry.path().string());
    }
  } catch (const fs::filesystem_error& error) {
    throw IoError("cannot list {}: {}", directory, error.what());
  }
  if (files.empty())
    throw DataError("{} and the directories below hold no file ending in {}", directory, listed(suffixes));
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  const int result = glob(pattern.c_str(), GLOB_ERR, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + (result == 0 ? found.gl_pathc : 0));
  globfree(&found);
  if (result == GLOB_NOMATCH) throw DataError("nothing matches {}", pattern);
  if (result != 0) throw IoError("cannot list the directories of {}", pattern);
  std::sort(paths.begin(), paths.end());
  return paths;
}

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw IoError("cannot {} {}: {}", what, path, std::strerror(errno));
}

void sync_directory(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  const int directory = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) refuse(path, "sync the directory of");
  const int result = fsync(directory);
  close(directory);
  if (result != 0) refuse(path, "sync the directory of");
}

void write_and_sync(int file, std::string_view content, const std::string& path) {
  while (!content.empty()) {
    const ssize_t written = write(file, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) refuse(path, "write");
    content.remove_prefix(static_cast<size_t>(written));
  }
  if (fsync(file) != 0) refuse(path, "sync");
}

}  // namespace

std::vector<std::string> list_input_files(const std::vector<std::string>& inputs,
                                          const std::vector<std::string_view>& suffixes) {
  std::vector<std::string> files;
  const auto add = [&](const std::string& path) {
    if (fs::is_directory(path)) {
      const auto below = files_below(path, suffixes);
      files.insert(files.end(), below.begin(), below.end());
    } else if (!has_suffix(path, suffixes)) {
      throw DataError("{} ends in none of {}: rename it or convert it", path, listed(suffixes));
    } else {
      files.push_back(path);
    }
  };
  for (const std::string& input : inputs) {
    std::error_code ignored;  // what cannot be looked at cannot be opened either, and says so then
    if (fs::exists(input, ignored)) {
      add(input);
    } else if (input.find_first_of("*?[") != std::string::npos) {
      for (const std::string& path : matches(input)) add(path);
    } else {
      throw DataError("{} does not exist", input);
    }
  }
  std::map<std::string, std::string> seen;  // by canonical path
  for (const std::string& path : files) {
    const auto [first, is_new] = seen.emplace(fs::weakly_canonical(path).string(), path);
    if (!is_new) throw DataError("{} is read twice (also as {}): name each input once", path, first->second);
  }
  return files;
}

std::string read_whole_file(const std::string& path, int64_t largest) {
  const auto stream = open_stream(path);
  std::string content;
  size_t got = 0;
  do {
    constexpr size_t kStep = size_t{1} << 18;
    const size_t before = content.size();
    content.resize(before + kStep);
    got = stream->read(std::span(content).subspan(before));
    content.resize(before + got);
    if (static_cast<int64_t>(content.size()) > largest) throw DataError("{} is larger than {} bytes", path, largest);
  } while (got > 0);
  return content;
}

void write_whole_file(const std::string& path, std::string_view content) {
  const std::string temporary = path + ".tmp";
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file < 0) refuse(temporary, "create");
  try {
    write_and_sync(file, content, temporary);
  } catch (const IoError&) {
    close(file);
    unlink(temporary.c_str());
    throw;
  }
  close(file);
  if (rename(temporary.c_str(), path.c_str()) != 0) {
    const int reason = errno;
    unlink(temporary.c_str());
    errno = reason;
    refuse(path, "replace");
  }
  sync_directory(path);
}

}  // namespace conclave::text
