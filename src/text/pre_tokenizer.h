// SPDX-License-Identifier: Apache-2.0
// Cuts text into the pieces that BPE may not merge across, with PCRE2 (UTF, UCP, JIT). Nothing is dropped: the pieces
// laid end to end are the text, whatever bytes it holds. It applies no normalisation.
//
// Bytes that are not UTF-8 never meet a pattern: each longest run of them is one piece, and the valid text before and
// after it is cut as if it stood alone. PCRE2 10.42 counts U+180E as white space and Unicode does not; we follow
// Unicode, as Hugging Face `tokenizers` does. Character properties are those of PCRE2's Unicode version (14 for 10.42),
// so characters assigned later count as unassigned.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::text {

// Our default: the pattern of GPT-2.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// One splitting step: matches and what lies between them become pieces ("Isolated" in tokenizer.json).
struct SplitRule {
  std::string pattern;
  bool literal = false;  // the pattern is plain text, not a regular expression

  bool operator==(const SplitRule&) const = default;
};

// A value; copies share the compiled patterns, which are read-only, so any number of threads may use one.
class PreTokenizer {
 public:
  using Emit = std::function<void(std::string_view)>;

  PreTokenizer() = default;  // no rule: valid text stays in one piece
  // Each rule cuts the pieces of the one before. Throws DataError for a pattern that PCRE2 does not accept.
  explicit PreTokenizer(std::vector<SplitRule> rules);

  // Hands out the pieces of `text` in order; none is empty. Throws DataError when a pattern exceeds PCRE2's match
  // limit.
  void for_each(std::string_view text, const Emit& emit) const;

  const std::vector<SplitRule>& rules() const { return rules_; }

 private:
  class Splitter;
  std::vector<SplitRule> rules_;
  std::vector<std::shared_ptr<const Splitter>> splitters_;

  void apply(size_t step, std::string_view piece, const Emit& emit) const;
};

}  // namespace conclave::text
