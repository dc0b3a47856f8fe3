// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "text/byte_level.h"
#include "text/tokenizer_json.h"

namespace conclave::text {
namespace {

using Ordered = nlohmann::ordered_json;

Ordered byte_level(bool add_prefix_space, bool use_regex) {
  return {
      {"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Ordered pre_tokenizer(const TokenizerParts& parts) {
  const SplitRule gpt2{std::string(kGpt2Pattern), false};
  if (parts.rules.empty()) return byte_level(parts.add_prefix_space, false);
  if (parts.rules.size() == 1 && parts.rules[0] == gpt2) return byte_level(parts.add_prefix_space, true);
  check(!parts.add_prefix_space, "a prefix space goes with the GPT-2 pattern or none");
  Ordered steps = Ordered::array();
  for (const SplitRule& rule : parts.rules) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{rule.literal ? "String" : "Regex", rule.pattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  steps.push_back(byte_level(false, false));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

Ordered added_tokens(const TokenizerParts& parts) {
  Ordered list = Ordered::array();
  for (const AddedToken& token : parts.added) {
    list.push_back({{"id", token.id},
                    {"content", token.content},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", token.normalized},
                    {"special", token.special}});
  }
  return list;
}

Ordered model(const TokenizerParts& parts) {
  // Only tokens that are not added have byte characters for their bytes.
  std::vector<std::string> spelled;
  for (const std::string& token : parts.tokens) spelled.push_back(bytes_to_characters(token));
  for (const AddedToken& token : parts.added) spelled[token.id] = token.content;
  // Filled through the underlying vector: looking up each key first would be quadratic.
  Ordered vocab = Ordered::object();
  auto& entries = vocab.get_ref<Ordered::object_t&>();
  for (size_t id = 0; id < spelled.size(); ++id) entries.emplace_back(spelled[id], id);
  Ordered merges = Ordered::array();
  for (const Merge& merge : parts.bpe.merges) merges.push_back({spelled[merge.left], spelled[merge.right]});
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", !parts.bpe.whole_pieces.empty()},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

}  // namespace

std::string write_tokenizer_json(const TokenizerParts& parts) {
  const Ordered root = {{"version", "1.0"},
                        {"truncation", nullptr},
                        {"padding", nullptr},
                        {"added_tokens", added_tokens(parts)},
                        {"normalizer", nullptr},
                        {"pre_tokenizer", pre_tokenizer(parts)},
                        {"post_processor", byte_level(false, false)},
                        {"decoder", byte_level(false, false)},
                        {"model", model(parts)}};
  return root.dump(1) + "\n";
}

}  // namespace conclave::text
