// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <thread>

namespace conclave::app {
namespace {

namespace fs = std::filesystem;

// Folders that create_directories would make for `path`, deepest first.
std::vector<fs::path> missing_folders(const fs::path& path) {
  std::vector<fs::path> missing;
  std::error_code ignored;
  for (fs::path at = path; !at.empty() && !fs::exists(at, ignored); at = at.parent_path()) missing.push_back(at);
  return missing;
}

// Why not; empty when it is written.
std::string write_probe(const fs::path& directory, const fs::path& file, const std::string& content) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return fmt::format("cannot make it: {}", error.message());
  errno = 0;
  std::ofstream out(file);
  out << content;
  out.close();
  return out ? "" : fmt::format("cannot write there: {}", std::strerror(errno != 0 ? errno : EIO));
}

// Right content, not only the name: a left-over of an earlier probe proves nothing.
bool holds(const fs::path& file, const std::string& content) {
  std::ifstream in(file);
  std::string text;
  return std::getline(in, text) && text == content;
}

}  // namespace

bool DirectoryFigures::shared() const {
  return std::all_of(problems.begin(), problems.end(), [](const auto& problem) { return problem.empty(); }) &&
         std::all_of(misses.begin(), misses.end(), [](const auto& missed) { return missed.empty(); });
}

DirectoryFigures probe_directory(const comm::Group& group, const fs::path& directory, double patience) {
  const std::string token = group.all_gather_text(fmt::format("{:08x}", std::random_device()()))[0];
  const auto file_of = [&](int r) { return directory / fmt::format(".doctor-{}-{}", token, r); };
  // Parents first for those who look; rank 0's view decides who removes what.
  const auto made = missing_folders(fs::absolute(directory));
  group.barrier();
  DirectoryFigures figures;
  figures.problems = group.all_gather_text(write_probe(directory, file_of(group.rank()), token));

  // Network file systems remember for some seconds that a name is not there.
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(patience);
  std::vector<int> missed;
  do {
    missed.clear();
    for (int r = 0; r < group.size(); ++r)
      if (figures.problems[r].empty() && !holds(file_of(r), token)) missed.push_back(r);
    if (!missed.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  } while (!missed.empty() && std::chrono::steady_clock::now() < end);

  std::string text;
  for (const int r : missed) text += fmt::format("{} ", r);
  for (const auto& line : group.all_gather_text(text)) {
    std::istringstream in(line);
    figures.misses.emplace_back(std::istream_iterator<int>(in), std::istream_iterator<int>());
  }
  std::error_code ignored;
  fs::remove(file_of(group.rank()), ignored);
  group.barrier();
  for (const auto& folder : made) fs::remove(folder, ignored);  // those that are empty
  return figures;
}

}  // namespace conclave::app
