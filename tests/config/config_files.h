// SPDX-License-Identifier: Apache-2.0
// Configuration files in a directory of their own, which goes away with the object. For tests.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.h"

namespace conclave {

class ConfigFiles {
 public:
  ConfigFiles() {
    std::string name = (std::filesystem::temp_directory_path() / "conclave-config-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
  }
  ~ConfigFiles() { std::filesystem::remove_all(directory_); }
  ConfigFiles(const ConfigFiles&) = delete;
  ConfigFiles& operator=(const ConfigFiles&) = delete;

  std::filesystem::path write(const std::string& name, const std::string& text) const {
    const auto file = directory_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }
  const std::filesystem::path& directory() const { return directory_; }

 private:
  std::filesystem::path directory_;
};

// The message of the ConfigError that `act` throws; a note when it throws none.
template <typename Act>
std::string config_error(const Act& act) {
  try {
    act();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(no ConfigError)";
}

}  // namespace conclave
