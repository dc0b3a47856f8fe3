// SPDX-License-Identifier: Apache-2.0
// Configurations of the repository, read as `conclave info` reads them: nothing about data or ranks is asked.
#pragma once

#include <string>

#include "train/run_config.h"

namespace conclave::testing {

// `path` is relative to the repository.
inline train::RunConfig read_yaml(const std::string& path) {
  return train::load_config(std::string(CONCLAVE_SOURCE_DIR) + "/" + path, {}, {0, train::Purpose::kInfo, false})
      .config;
}

}  // namespace conclave::testing
