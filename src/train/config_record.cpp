// SPDX-License-Identifier: Apache-2.0
#include "train/config_record.h"

#include "config/json.h"
#include "core/error.h"

namespace conclave::train {

using checkpoint::Json;

checkpoint::ConfigRecord config_record(const RunConfig& config) {
  checkpoint::ConfigRecord record;
  record.model = {{"model", config::to_json(config.model)}, {"moe", config::to_json(config.moe)}};
  record.training = {{"data", config::to_json(config.data)},
                     {"optim", config::to_json(config.optim)},
                     {"train", config::to_json(config.train)}};
  record.runtime = {{"parallel", config::to_json(config.parallel)},
                    {"eval", config::to_json(config.eval)},
                    {"checkpoint", config::to_json(config.checkpoint)},
                    {"metrics", config::to_json(config.metrics)}};
  // Where it is computed is no part of what is trained.
  record.runtime["train"]["device"] = record.training["train"]["device"];
  record.training["train"].erase("device");
  // How tokens travel, how experts are balanced and where weights began do not change what the weights mean.
  for (const char* key : {"balance", "capacity"}) record.training["moe"][key] = record.model["moe"][key];
  for (const char* key : {"balance", "capacity", "dispatch"}) record.model["moe"].erase(key);
  for (const char* key : {"init_from", "init_std", "init_scale"}) record.model["model"].erase(key);
  record.training["moe"]["payload"] = config::to_json(config.moe.dispatch)["payload"];
  if (config.moe.top_k.scheduled()) {
    record.training["moe"]["top_k"] = record.model["moe"]["top_k"];
    record.model["moe"]["top_k"] = static_cast<int64_t>(config.moe.top_k);
  }
  // What acts in training alone. The coefficient of an l1 loss is start · rate^steps, so its numbers belong to its
  // state.
  auto& l1 = record.model["moe"]["l1"] = Json::array();
  for (const auto& loss : config.moe.balance.losses) l1.push_back(config::tree_to_json(config::to_node(loss.l1)));
  for (const char* key : {"jitter", "noise", "second", "second_threshold", "noisy_topk", "sinkhorn", "expert_choice",
                          "base", "default_moe", "frozen"}) {
    record.training["moe"]["router"][key] = record.model["moe"]["router"][key];
    record.model["moe"]["router"].erase(key);
  }
  // What a table was made of: the table itself is state.
  if (Json& hash = record.model["moe"]["router"]["hash"]; hash.is_object()) {
    record.training["moe"]["router"]["hash"] = hash;
    for (const char* key : {"sample", "embeddings"}) hash.erase(key);
  }
  record.training["moe"]["experts"]["dropout"] = record.model["moe"]["experts"]["dropout"];
  record.model["moe"]["experts"].erase("dropout");
  return record;
}

namespace {

config::Node node_of(const Json& json) {
  if (json.is_string()) return config::scalar_node(json.get<std::string>());
  config::Node node;
  if (json.is_array()) {
    node.kind = config::Node::Kind::kList;
    for (const auto& item : json) node.list.push_back(node_of(item));
  } else if (json.is_object()) {
    node.kind = config::Node::Kind::kMap;
    for (const auto& [key, value] : json.items()) node.map.push_back({key, {}, node_of(value)});
  }
  return node;
}

// What config_record() keeps apart goes back to its section.
Json whole_moe(const checkpoint::ConfigRecord& record) {
  Json moe = record.model.at("moe");
  moe.erase("l1");
  if (!record.training.contains("moe")) return moe;
  const Json& apart = record.training.at("moe");
  for (const char* key : {"balance", "capacity", "top_k"})
    if (apart.contains(key)) moe[key] = apart.at(key);
  for (const char* section : {"router", "experts"})
    if (apart.contains(section))
      for (const auto& [key, value] : apart.at(section).items()) moe[section][key] = value;
  return moe;
}

}  // namespace

std::pair<model::ModelConfig, moe::MoeConfig> recorded_model(const checkpoint::ConfigRecord& record,
                                                             const std::string& where) {
  if (!record.model.contains("model") || !record.model.contains("moe"))
    throw ConfigError("{} does not say which model it is of\n  Name a checkpoint of `conclave train`.", where);
  std::pair<model::ModelConfig, moe::MoeConfig> sections;
  config::Problems problems;
  config::Reader reader(run_schema(), problems);
  reader.read(node_of(record.model.at("model")), sections.first, "model");
  reader.read(node_of(whole_moe(record)), sections.second, "moe");
  try {
    problems.throw_if_any();
  } catch (const ConfigError& error) {
    throw ConfigError("the model of {} cannot be read:\n{}", where, error.what());
  }
  return sections;
}

}  // namespace conclave::train
