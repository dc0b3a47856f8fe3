// SPDX-License-Identifier: Apache-2.0
// Where a configuration value was written, and the list of everything that is wrong with a configuration. Problems are
// collected while reading and checking and thrown once, so that a user mends a file in one go.
#pragma once

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::config {

// A text that values were read from: a YAML file, or one command-line argument.
struct Source {
  std::string name;                 // as the user wrote it, or "--set #2"
  std::filesystem::path directory;  // where relative paths named in it start
  std::string text;
  bool argument = false;
};

// Position of a value; without a source it is a default.
struct Origin {
  std::shared_ptr<const Source> source;
  int line = 0;     // from 1
  int column = 0;   // from 1, in bytes
  int length = 1;   // bytes to underline
  std::string via;  // the environment variable or key that a ${...} took the value from

  // "tiny.yaml:3:5", "--set #2", "default", each with its `via`.
  std::string where() const;
  // The source line and a caret below the value; empty for defaults.
  std::string excerpt() const;
};

class Problems {
 public:
  // `path` is the key concerned, "moe.top_k"; may be empty.
  void add(const Origin& origin, const std::string& path, const std::string& message);
  // Adds, then throws everything found so far: for what makes reading on pointless (syntax, missing files).
  [[noreturn]] void fail(const Origin& origin, const std::string& path, const std::string& message);
  void warn(const std::string& message) { warnings_.push_back(message); }

  // True when a problem at `path`, at a part of it or at a section around it is known: its value means nothing.
  bool concerns(std::string_view path) const;
  // So many problems that looking for suggestions would only cost time.
  bool flooded() const { return count_ >= 50; }
  size_t count() const { return count_; }
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Throws ConfigError with report() unless nothing was found.
  void throw_if_any() const;
  // The first ten problems in order of place, then the number of the others.
  std::string report() const;

 private:
  struct Problem {
    Origin origin;
    std::string path;
    std::string message;
  };
  std::vector<Problem> kept_;
  std::set<std::string, std::less<>> paths_;
  size_t count_ = 0;
  std::vector<std::string> warnings_;
};

}  // namespace conclave::config
