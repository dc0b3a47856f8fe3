// SPDX-License-Identifier: Apache-2.0
// Rules between values, one function for each group of sections. A rule names the keys it is about; its message points
// at the first of them that the user wrote. Internal to run_config.cpp.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "train/run_config.h"

namespace conclave::train {

class Rules {
 public:
  Rules(const config::Node& document, config::Problems& problems, const LoadOptions& options)
      : document_(document), problems_(problems), read_problems_(problems), options_(options) {}

  using Keys = std::initializer_list<std::string>;
  // A problem unless `holds`. Silent when one of the keys could not be read, since its value means nothing then.
  void require(bool holds, Keys keys, const std::string& message);
  void warn_if(bool odd, Keys keys, const std::string& message);
  // A problem when training, a warning when only counting.
  void unbuilt(bool used, const std::string& key, const std::string& reason);
  // `value` must be one of `built`; one of `planned` is not built yet, everything else is unknown.
  void one_of(const std::string& key, const std::string& value, std::vector<std::string> built,
              const std::vector<std::string>& planned = {});

  // The directory where a relative path given at `key` starts; empty = the working directory.
  std::filesystem::path directory_of(const std::string& key) const;
  const LoadOptions& options() const { return options_; }
  bool training() const { return options_.purpose == Purpose::kTrain; }

 private:
  // The first key that was written, else the first.
  std::string place(Keys keys) const;

  const config::Node& document_;
  config::Problems& problems_;
  config::Problems read_problems_;  // what was known before the first rule
  LoadOptions options_;
};

// Experts of a token in the step that has the fewest, after granularity.
int64_t least_top_k(const moe::MoeConfig& moe);

// Values derived from others where they are not given. Leaves a value out where its rule is broken.
void fill_model(RunConfig& config);
// parallel.dp from `world_size`, or the least that fits when 0.
void fill_layout(RunConfig& config, int64_t world_size);

void check_unbuilt(const RunConfig& config, Rules& rules);
void check_device(const RunConfig& config, Rules& rules);
// What the configuration asks of the device path.
void check_device_path(const RunConfig& config, Rules& rules);
void check_model(const RunConfig& config, Rules& rules);
void check_moe(const RunConfig& config, Rules& rules);
void check_methods(const RunConfig& config, Rules& rules);
// Experts that are merged instead of chosen.
void check_merges(const RunConfig& config, Rules& rules);
void check_single_routers(const RunConfig& config, Rules& rules);
void check_layout(const RunConfig& config, Rules& rules);
// What needs resolved widths: asked only when nothing else is wrong.
void check_tensor_widths(const RunConfig& config, Rules& rules);
void check_training(const RunConfig& config, Rules& rules);
// Makes the paths of sources and tokenizer absolute; with check_files they must exist.
void resolve_paths(RunConfig& config, Rules& rules);

// Whether layer `layer` has experts, and of how many layers that is true.
bool is_moe_layer(const moe::MoeConfig& moe, int64_t layer);
int64_t count_moe_layers(const RunConfig& config);

}  // namespace conclave::train
