// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <algorithm>

#include "core/error.h"
#include "text/input_files.h"
#include "text/tokenizer_json.h"

namespace conclave::text {
namespace {

// A vocabulary of a million long tokens stays below this.
constexpr int64_t kLargestFile = int64_t{256} << 20;

constexpr std::string_view kEndTexts[] = {
    kEndOfDocumentText, "<|end_of_text|>", "<|endofdocument|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>"};

std::optional<int32_t> find_end(const std::vector<AddedToken>& added) {
  for (const std::string_view text : kEndTexts) {
    for (const AddedToken& token : added) {
      if (token.content == text) return token.id;
    }
  }
  return std::nullopt;
}

// Feeds fields to the hash so that no two different tokenizers give the same bytes: numbers fixed width, texts with
// length.
class Digest {
 public:
  Digest() : state_(XXH3_createState()) { XXH3_128bits_reset(state_); }
  ~Digest() { XXH3_freeState(state_); }
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void number(int64_t value) { XXH3_128bits_update(state_, &value, sizeof(value)); }
  void text(std::string_view value) {
    number(static_cast<int64_t>(value.size()));
    XXH3_128bits_update(state_, value.data(), value.size());
  }
  XXH128_hash_t value() const { return XXH3_128bits_digest(state_); }

 private:
  XXH3_state_t* state_;
};

XXH128_hash_t digest(const TokenizerParts& parts) {
  Digest digest;
  digest.number(static_cast<int64_t>(parts.tokens.size()));
  for (const std::string& token : parts.tokens) digest.text(token);
  for (const int32_t id : parts.bpe.byte_ids) digest.number(id);
  digest.number(static_cast<int64_t>(parts.bpe.merges.size()));
  for (const Merge& merge : parts.bpe.merges) {
    digest.number(merge.left);
    digest.number(merge.right);
    digest.number(merge.merged);
  }
  digest.number(parts.bpe.whole_pieces.empty() ? 0 : 1);
  digest.number(static_cast<int64_t>(parts.rules.size()));
  for (const SplitRule& rule : parts.rules) {
    digest.text(rule.pattern);
    digest.number(rule.literal);
  }
  digest.number(parts.add_prefix_space);
  digest.number(static_cast<int64_t>(parts.added.size()));
  for (const AddedToken& token : parts.added) {
    digest.number(token.id);
    digest.text(token.content);
    digest.number(token.special);
    digest.number(token.normalized);
  }
  return digest.value();
}

TokenizerParts byte_parts() {
  TokenizerParts parts;
  for (int byte = 0; byte < 256; ++byte) {
    parts.tokens.emplace_back(1, static_cast<char>(byte));
    parts.bpe.byte_ids[byte] = byte;
  }
  return parts;
}

void append_special(TokenizerParts& parts, const std::string& content) {
  parts.added.push_back({static_cast<int32_t>(parts.tokens.size()), content, true, false});
  parts.tokens.push_back(content);
}

}  // namespace

Tokenizer::Tokenizer(TokenizerParts parts) : Tokenizer(std::move(parts), std::string()) {}

Tokenizer::Tokenizer(TokenizerParts parts, std::string source) {
  std::sort(parts.added.begin(), parts.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  const XXH128_hash_t hash = digest(parts);
  auto hex = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  Bpe bpe(parts.bpe);
  AddedTokens added(parts.added);
  PreTokenizer pre_tokenizer(parts.rules);
  const auto end = find_end(parts.added);
  state_ =
      std::make_shared<const State>(State{std::move(parts), std::move(bpe), std::move(added), std::move(pre_tokenizer),
                                          end, std::move(hex), hash.low64, std::move(source)});
}

Tokenizer Tokenizer::bytes() {
  TokenizerParts parts = byte_parts();
  append_special(parts, std::string(kEndOfDocumentText));
  return Tokenizer(std::move(parts));
}

Tokenizer Tokenizer::train(const NextDocument& next, const TokenizerTraining& training) {
  const auto specials = static_cast<int32_t>(training.special_tokens.size());
  if (training.vocab_size < 256 + specials) {
    throw UsageError(
        "a byte-level vocabulary of {} tokens is too small: 256 bytes and {} special tokens need at least {}",
        training.vocab_size, specials, 256 + specials);
  }
  TokenizerParts parts = byte_parts();
  parts.rules = {{std::string(kGpt2Pattern), false}};
  const PieceCounts pieces = count_pieces(next, PreTokenizer(parts.rules), training.threads);
  LearnedMerges learned = learn_merges(pieces, training.vocab_size - specials, training.special_tokens);
  parts.tokens = std::move(learned.tokens);
  parts.bpe.merges = std::move(learned.merges);
  for (const std::string& content : training.special_tokens) append_special(parts, content);
  return Tokenizer(std::move(parts));
}

Tokenizer Tokenizer::load(const std::string& name) {
  return name == "bytes" ? bytes() : from_json(read_whole_file(name, kLargestFile), name);
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& where) {
  TokenizerParts parts = parse_tokenizer_json(json, where);
  try {
    return Tokenizer(std::move(parts), std::string(json));
  } catch (const DataError& error) {
    throw DataError("{}: {}", where, error.what());
  }
}

std::optional<int32_t> Tokenizer::added_token(std::string_view content) const {
  for (const AddedToken& token : state_->parts.added) {
    if (token.content == content) return token.id;
  }
  return std::nullopt;
}

void Tokenizer::encode_text(std::string_view text, std::vector<int32_t>& out, WordCache& cache) const {
  const State& state = *state_;
  if (state.parts.bpe.merges.empty() && state.parts.bpe.whole_pieces.empty()) {  // however it is cut: a token a byte
    for (const char byte : text) out.push_back(state.parts.bpe.byte_ids[static_cast<unsigned char>(byte)]);
    return;
  }
  cache.bind(state.fingerprint);
  state.pre_tokenizer.for_each(text, [&](std::string_view piece) {
    if (cache.recall(piece, out)) return;
    const size_t before = out.size();
    state.bpe.encode(piece, out);
    cache.remember(piece, std::span(out).subspan(before));
  });
}

void Tokenizer::encode(std::string_view text, std::vector<int32_t>& out, WordCache& cache, SpecialText special) const {
  state_->added.cut(text, special, [&](std::string_view part, std::optional<int32_t> id) {
    if (id) {
      out.push_back(*id);
    } else if (state_->parts.add_prefix_space && part[0] != ' ') {
      encode_text(std::string(1, ' ').append(part), out, cache);
    } else {
      encode_text(part, out, cache);
    }
  });
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialText special) const {
  std::vector<int32_t> ids;
  WordCache cache;
  encode(text, ids, cache, special);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      throw DataError(
          "token {} at position {} is outside the vocabulary of {}: these ids were made with another tokenizer", ids[i],
          i, vocab_size());
    }
    text += state_->parts.tokens[ids[i]];
  }
  return text;
}

std::string Tokenizer::to_json() const {
  return state_->source.empty() ? write_tokenizer_json(state_->parts) : state_->source;
}

void Tokenizer::save(const std::string& path) const { write_whole_file(path, to_json()); }

}  // namespace conclave::text
