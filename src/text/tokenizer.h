// SPDX-License-Identifier: Apache-2.0
// A tokenizer as the rest of the program sees it: text to ids and back, from a tokenizer.json or plain bytes. Every
// text, valid UTF-8 or not, comes back unchanged from decode(encode(text)), except that `add_prefix_space` puts its
// space in front. It adds no beginning- or end-of-text tokens: whoever joins documents does.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/bpe_trainer.h"
#include "text/pre_tokenizer.h"
#include "text/word_cache.h"

namespace conclave::text {

inline constexpr std::string_view kEndOfDocumentText = "<|endoftext|>";

// Everything a tokenizer is. tokenizer_json.h fills it from a file.
struct TokenizerParts {
  std::vector<std::string> tokens;  // bytes of each id; no gaps
  BpeTables bpe;
  std::vector<AddedToken> added;
  std::vector<SplitRule> rules;
  bool add_prefix_space = false;
};

struct TokenizerTraining {
  int32_t vocab_size =
      2048;  // all tokens, the specials included; fewer when the text runs out of pairs that occur twice
  // Take the last ids, in this order; the first is the end of the document.
  std::vector<std::string> special_tokens = {std::string(kEndOfDocumentText)};
  int threads = 1;  // does not change the result
};

// A value; copies share their tables, which are read-only, so threads may encode with one tokenizer at a time without
// locks.
class Tokenizer {
 public:
  // The 256 bytes as they are, and 256 = end of document.
  static Tokenizer bytes();
  // Byte-level BPE over the GPT-2 pattern: ids 0-255 are the bytes, then the merges in order, then the special tokens.
  // Throws UsageError when vocab_size cannot hold the bytes and the special tokens.
  static Tokenizer train(const NextDocument& next, const TokenizerTraining& training);
  // "bytes", or the path of a tokenizer.json. Throws IoError when it cannot be read and DataError, with path and
  // reason, when it is broken or uses a component we do not have.
  static Tokenizer load(const std::string& name);
  // `where` names the source in messages.
  static Tokenizer from_json(std::string_view json, const std::string& where);

  explicit Tokenizer(TokenizerParts parts);

  // One more than the greatest id.
  int32_t vocab_size() const { return static_cast<int32_t>(state_->parts.tokens.size()); }
  // The first of these that is an added token: <|endoftext|>, <|end_of_text|>, <|endofdocument|>, DeepSeek's
  // <|end of sentence|> with its own bars, </s>, <eos>. Empty when none is.
  std::optional<int32_t> end_of_document() const { return state_->end_of_document; }
  // Id of the added token with this text.
  std::optional<int32_t> added_token(std::string_view content) const;
  // 32 hex digits over tokens, merges, split rules and added tokens (XXH3, 128 bits): equal hashes = equal ids for
  // every text. The layout of the file does not matter.
  const std::string& hash() const { return state_->hash; }

  // Appends the ids of `text` to `out`. `cache` belongs to the calling thread.
  void encode(std::string_view text, std::vector<int32_t>& out, WordCache& cache,
              SpecialText special = SpecialText::kPlain) const;
  std::vector<int32_t> encode(std::string_view text, SpecialText special = SpecialText::kPlain) const;
  // The bytes of all ids, special tokens included. Throws DataError for an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids) const;

  // A tokenizer.json that Hugging Face `tokenizers` loads. One that was loaded is given back as it was.
  std::string to_json() const;
  // Writes a temporary file beside `path`, syncs and renames it. Throws IoError.
  void save(const std::string& path) const;

  const TokenizerParts& parts() const { return state_->parts; }

 private:
  struct State {
    TokenizerParts parts;
    Bpe bpe;
    AddedTokens added;
    PreTokenizer pre_tokenizer;
    std::optional<int32_t> end_of_document;
    std::string hash;
    uint64_t fingerprint = 0;  // of the hash, for caches
    std::string source;        // the file's text; empty when not loaded
  };
  std::shared_ptr<const State> state_;

  Tokenizer(TokenizerParts parts, std::string source);
  void encode_text(std::string_view text, std::vector<int32_t>& out, WordCache& cache) const;
};

}  // namespace conclave::text
