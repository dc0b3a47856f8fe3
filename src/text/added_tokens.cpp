// SPDX-License-Identifier: Apache-2.0
#include "text/added_tokens.h"

#include <algorithm>

namespace conclave::text {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    passes_[tokens_[i].normalized][static_cast<unsigned char>(tokens_[i].content[0])].push_back(i);
  }
  for (ByFirstByte& pass : passes_) {
    for (auto& bucket : pass) {
      std::sort(bucket.begin(), bucket.end(),
                [&](size_t a, size_t b) { return tokens_[a].content.size() > tokens_[b].content.size(); });
    }
  }
}

const AddedToken* AddedTokens::match(size_t pass, std::string_view text, SpecialText special) const {
  for (const size_t index : passes_[pass][static_cast<unsigned char>(text[0])]) {
    const AddedToken& token = tokens_[index];
    if (token.special && special == SpecialText::kPlain) continue;
    if (text.starts_with(token.content)) return &token;
  }
  return nullptr;
}

void AddedTokens::cut_pass(size_t pass, std::string_view text, SpecialText special, const Emit& emit) const {
  const auto emit_text = [&](std::string_view part) {
    if (part.empty()) return;
    if (pass + 1 < passes_.size()) {
      cut_pass(pass + 1, part, special, emit);
    } else {
      emit(part, std::nullopt);
    }
  };
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = match(pass, text.substr(at), special);
    if (!token) {
      ++at;
      continue;
    }
    emit_text(text.substr(done, at - done));
    emit(token->content, token->id);
    at += token->content.size();
    done = at;
  }
  emit_text(text.substr(done));
}

void AddedTokens::cut(std::string_view text, SpecialText special, const Emit& emit) const {
  const bool nothing_to_find = std::none_of(tokens_.begin(), tokens_.end(), [&](const AddedToken& token) {
    return !token.special || special == SpecialText::kTokens;
  });
  if (nothing_to_find) {
    if (!text.empty()) emit(text, std::nullopt);
  } else {
    cut_pass(0, text, special, emit);
  }
}

}  // namespace conclave::text
