// SPDX-License-Identifier: Apache-2.0
// The files of tests/golden/, written by tools/make_golden.py: reference numbers, weights and batches.
#pragma once

#include <ATen/ops/from_blob.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "core/batch.h"
#include "core/error.h"
#include "model/transformer.h"
#include "support/read_yaml.h"

namespace conclave::testing {

inline std::string golden_path(const std::string& file) {
  return std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/" + file;
}

inline nlohmann::json golden_json(const std::string& file) {
  std::ifstream in(golden_path(file));
  check(in.good(), "a golden file is missing: run tools/make_golden.py");
  return nlohmann::json::parse(in);
}

// The configuration of a case of `golden_json`; auxiliary cases include their family's file.
inline model::TransformerConfig golden_config(const nlohmann::json& golden) {
  const auto sections = read_yaml("tests/golden/" + golden["config"].get<std::string>());
  model::TransformerConfig config;
  config.model = sections.model;
  config.moe = sections.moe;
  return config;
}

// Overwrites every parameter of `transformer` (all experts here); each tensor of the file must be used and have our
// shape.
inline void load_golden_weights(model::Transformer& transformer, const std::string& file) {
  std::ifstream in(golden_path(file), std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  uint64_t header_size = 0;
  check(bytes.size() > sizeof header_size, "a golden file is missing: run tools/make_golden.py");
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  auto header = nlohmann::json::parse(bytes.substr(sizeof header_size, header_size));
  header.erase("__metadata__");
  for (const auto& parameter : transformer.parameters().all()) {
    int64_t offset = parameter.offset;
    for (const auto& part : parameter.parts) {
      check(header.contains(part.name), part.name.c_str());
      const auto& entry = header[part.name];
      check(entry["shape"] == nlohmann::json(part.shape) && entry["dtype"] == "F32", part.name.c_str());
      char* data = bytes.data() + sizeof header_size + header_size + entry["data_offsets"][0].get<int64_t>();
      const int64_t count = nn::element_count(part.shape);
      transformer.parameters()
          .flat(parameter.expert)
          .narrow(0, offset, count)
          .copy_(at::from_blob(data, {count}, at::kFloat));
      offset += count;
      header.erase(part.name);
    }
  }
  check(header.empty(), "the golden file has tensors that the model lacks");
}

// transformers shifts labels inside a sequence: the last position has no target, but is routed and counted.
inline Batch golden_batch(const nlohmann::json& golden, int64_t step) {
  Batch batch;
  const auto& rows = golden["tokens"][step];
  batch.sequences = static_cast<int64_t>(rows.size());
  batch.length = static_cast<int64_t>(rows[0].size());
  for (int64_t b = 0; b < batch.sequences; ++b) {
    for (int64_t i = 0; i < batch.length; ++i) {
      const bool last = i + 1 == batch.length;
      batch.tokens.push_back(rows[b][i]);
      batch.targets.push_back(last ? 0 : rows[b][i + 1].get<int32_t>());
      batch.loss_mask.push_back(last ? 0.0f : 1.0f);
      batch.segment_ids.push_back(0);
      batch.position_ids.push_back(static_cast<int32_t>(i));
      batch.global_token_ids.push_back((step * batch.sequences + b) * batch.length + i);
    }
  }
  return batch;
}

}  // namespace conclave::testing
