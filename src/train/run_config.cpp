// SPDX-License-Identifier: Apache-2.0
#include "train/run_config.h"

#include <numeric>

#include "config/fields.h"
#include "config/suggest.h"
#include "config/yaml.h"
#include "train/config_rules.h"
#include "train/run_document.h"

namespace conclave::train {
namespace {

void check_all(RunConfig& config, Rules& rules) {
  check_unbuilt(config, rules);
  check_device(config, rules);
  check_device_path(config, rules);
  check_model(config, rules);
  check_moe(config, rules);
  check_layout(config, rules);
  check_training(config, rules);
}

void fill_all(RunConfig& config, int64_t world_size) {
  fill_layout(config, world_size);
  fill_model(config);
}

}  // namespace

const config::Schema& run_schema() {
  static const config::Schema schema = config::describe<RunConfig>();
  return schema;
}

namespace {

// From the merged document on; `problems` may hold what its reading found.
LoadedConfig read_document(config::Node document, config::Problems& problems, const LoadOptions& options) {
  LoadedConfig loaded;
  loaded.document = std::move(document);
  config::Reader(run_schema(), problems).read(loaded.document, loaded.config, "");
  Rules rules(loaded.document, problems, options);
  resolve_paths(loaded.config, rules);
  fill_layout(loaded.config, options.world_size);
  check_all(loaded.config, rules);
  problems.throw_if_any();
  check_tensor_widths(loaded.config, rules);
  problems.throw_if_any();
  fill_model(loaded.config);
  loaded.warnings = problems.warnings();
  return loaded;
}

}  // namespace

LoadedConfig load_config(const std::filesystem::path& file, std::span<const config::Override> overrides,
                         const LoadOptions& options) {
  config::Problems problems;
  return read_document(config::load_document(file, overrides, run_schema(), problems), problems, options);
}

LoadedConfig load_config(config::Node document, const LoadOptions& options) {
  config::Problems problems;
  config::expand_references(document, run_schema(), problems);
  return read_document(std::move(document), problems, options);
}

std::vector<std::string> resolve(RunConfig& config, int64_t world_size, Purpose purpose) {
  config::Problems problems;
  const config::Node document = config::to_node(config);
  RunConfig checked;  // values set in code obey the same rules as values that were read
  config::Reader(run_schema(), problems).read(document, checked, "");
  Rules rules(document, problems, {world_size, purpose, false});
  fill_layout(checked, world_size);
  check_all(checked, rules);
  problems.throw_if_any();
  check_tensor_widths(checked, rules);
  problems.throw_if_any();
  fill_all(config, world_size);
  return problems.warnings();
}

std::string to_yaml(const RunConfig& config) { return config::write_yaml(config::to_node(config)); }

int64_t world_size(const RunConfig& config) {
  const parallel::ParallelConfig& mesh = config.parallel;
  return mesh.pp * mesh.dp.value_or(1) * mesh.cp * mesh.tp;
}

void fill_layout(RunConfig& config, int64_t world_size) {
  parallel::ParallelConfig& mesh = config.parallel;
  if (mesh.dp) return;
  const int64_t others = mesh.pp * mesh.cp * mesh.tp;
  const int64_t expert_ranks = mesh.ep * mesh.etp;
  mesh.dp = world_size > 0 ? std::max<int64_t>(world_size / others, 1)
                           : expert_ranks / std::gcd(expert_ranks, mesh.cp * mesh.tp);
}

void fill_model(RunConfig& config) {
  model::ModelConfig& model = config.model;
  moe::MoeConfig& moe = config.moe;
  if (!model.num_key_value_heads) model.num_key_value_heads = model.num_attention_heads;
  if (!model.head_dim) model.head_dim = model.hidden_size / model.num_attention_heads;
  if (!model.ffn_hidden_size) model.ffn_hidden_size = 4 * model.hidden_size;
  if (!moe.expert_hidden_size) moe.expert_hidden_size = *model.ffn_hidden_size;
  if (!moe.shared_hidden_size && moe.num_shared_experts > 0) {
    moe.shared_hidden_size = moe.num_shared_experts * (*moe.expert_hidden_size / moe.granularity);
  }
  if (!moe.capacity.eval_factor) moe.capacity.eval_factor = moe.capacity.factor;
}

bool is_moe_layer(const moe::MoeConfig& moe, int64_t layer) {
  if (const auto* list = std::get_if<std::vector<int64_t>>(&moe.layers)) {
    return layer < static_cast<int64_t>(list->size()) && (*list)[static_cast<size_t>(layer)] != 0;
  }
  const auto& pattern = std::get<moe::LayerPattern>(moe.layers);
  return layer >= pattern.first_k_dense && (layer - pattern.first_k_dense) % pattern.layer_freq == 0;
}

int64_t count_moe_layers(const RunConfig& config) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < config.model.num_layers; ++layer) count += is_moe_layer(config.moe, layer) ? 1 : 0;
  return count;
}

std::string Rules::place(Keys keys) const {
  for (const std::string& key : keys) {
    if (config::find(document_, key) != nullptr) return key;
  }
  return *keys.begin();
}

void Rules::require(bool holds, Keys keys, const std::string& message) {
  if (holds) return;
  for (const std::string& key : keys) {
    if (read_problems_.concerns(key)) return;
  }
  const std::string key = place(keys);
  problems_.add(config::origin_of(document_, key), key, message);
}

void Rules::warn_if(bool odd, Keys keys, const std::string& message) {
  if (!odd) return;
  const std::string key = place(keys);
  const config::Origin origin = config::origin_of(document_, key);
  problems_.warn((origin.source ? origin.where() + ": " : "") + key + ": " + message);
}

void Rules::unbuilt(bool used, const std::string& key, const std::string& reason) {
  if (training()) {
    require(!used, {key}, "not built yet: " + reason);
  } else {
    warn_if(used, {key}, "cannot be trained yet: " + reason);
  }
}

void Rules::one_of(const std::string& key, const std::string& value, std::vector<std::string> built,
                   const std::vector<std::string>& planned) {
  if (std::find(built.begin(), built.end(), value) != built.end()) return;
  const std::string choice = fmt::format("{}", fmt::join(built, ", "));
  if (std::find(planned.begin(), planned.end(), value) != planned.end()) {
    return unbuilt(true, key, fmt::format("'{}'; built so far: {}", value, choice));
  }
  std::vector<std::string> all = built;
  all.insert(all.end(), planned.begin(), planned.end());
  require(false, {key},
          fmt::format("unknown value '{}'{}; one of: {}", value, config::did_you_mean(value, all), choice));
}

std::filesystem::path Rules::directory_of(const std::string& key) const {
  const config::Node* node = config::find(document_, key);
  return node == nullptr || !node->origin.source ? std::filesystem::path() : node->origin.source->directory;
}

}  // namespace conclave::train
