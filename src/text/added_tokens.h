// SPDX-License-Identifier: Apache-2.0
// Tokens with a text of their own that stand outside the merges: end of document, chat marks, runs of spaces. Finds
// them in a text before it is split. Immutable after construction.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::text {

struct AddedToken {
  int32_t id = 0;
  std::string content;      // not empty
  bool special = false;     // a control token, which text need not be able to spell
  bool normalized = false;  // looked for only where no token that is not normalized was found

  bool operator==(const AddedToken&) const = default;
};

// What encoding makes of a special token's text, such as "<|endoftext|>" inside a document.
enum class SpecialText {
  kPlain,   // ordinary text: a document cannot forge control tokens
  kTokens,  // the token (prompts)
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // Cuts `text` at the leftmost, then longest added token, again and again, in two passes as Hugging Face `tokenizers`
  // does: first the tokens that are not normalized, then the others in what lies between. Hands out text (never empty,
  // no id) and tokens in order.
  using Emit = std::function<void(std::string_view, std::optional<int32_t>)>;
  void cut(std::string_view text, SpecialText special, const Emit& emit) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  using ByFirstByte = std::array<std::vector<size_t>, 256>;  // indices into tokens_, longest first
  std::vector<AddedToken> tokens_;
  std::array<ByFirstByte, 2> passes_;

  void cut_pass(size_t pass, std::string_view text, SpecialText special, const Emit& emit) const;
  const AddedToken* match(size_t pass, std::string_view text, SpecialText special) const;
};

}  // namespace conclave::text
