// SPDX-License-Identifier: Apache-2.0
// The `data:` section.
#pragma once

#include "config/types.h"

namespace conclave::data {

struct SourceConfig {
  std::string name;
  std::string path;  // prefix of PATH.bin / PATH.idx
  double weight = 1.0;

  void fields(auto&& field) {
    field("name", name, "how reports call this source", config::kRequired);
    field("path", path, "token files without .bin/.idx, relative to this YAML file", config::kRequired);
    field("weight", weight, "share of the mixture, relative to the other sources", config::kPositive);
  }
};

struct DataConfig {
  std::vector<SourceConfig> train;
  std::vector<SourceConfig> valid;
  int64_t seq_len = 1024;
  std::string packing = "concat";
  bool document_mask = false;
  int64_t seed = 1;
  std::optional<std::string> tokenizer;

  void fields(auto&& field) {
    field("train", train, "sources of training tokens, mixed by weight");
    field("valid", valid, "sources of validation tokens, each reported by name");
    field("seq_len", seq_len, "tokens of a training sequence", config::kSize);
    field("packing", packing, "concat = documents end to end, an end-of-document token between them");
    field("document_mask", document_mask, "attention stays inside a document and positions restart");
    field("seed", seed, "seed of shuffling and mixing", config::kNotNegative);
    field("tokenizer", tokenizer, "tokenizer.json; checked against the token files");
  }
};

}  // namespace conclave::data
