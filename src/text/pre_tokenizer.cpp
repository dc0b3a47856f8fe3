// SPDX-License-Identifier: Apache-2.0
#include "text/pre_tokenizer.h"

#include <pcre2.h>

#include "core/error.h"
#include "text/utf8.h"

namespace conclave::text {
namespace {

template <auto kFree>
struct FreeWith {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};
using Code = std::unique_ptr<pcre2_code, FreeWith<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, FreeWith<pcre2_match_data_free>>;

std::string reason(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

// U+180E and U+200B are both three bytes and format characters (Cf), but only the first is PCRE2's white space:
// matching a copy with the one in the other's place gives Unicode's cuts at the same offsets.
constexpr std::string_view kMongolianSeparator = "\xe1\xa0\x8e";
constexpr std::string_view kZeroWidthSpace = "\xe2\x80\x8b";

std::string with_unicode_white_space(std::string_view text) {
  std::string copy(text);
  for (size_t at = 0; (at = copy.find(kMongolianSeparator, at)) != std::string::npos; at += kZeroWidthSpace.size()) {
    copy.replace(at, kZeroWidthSpace.size(), kZeroWidthSpace);
  }
  return copy;
}

}  // namespace

class PreTokenizer::Splitter {
 public:
  explicit Splitter(const SplitRule& rule) : pattern_(rule.pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    const uint32_t options = PCRE2_UTF | (rule.literal ? PCRE2_LITERAL : PCRE2_UCP);
    code_.reset(pcre2_compile(units(pattern_), pattern_.size(), options, &error, &offset, nullptr));
    if (!code_) {
      throw DataError("the pre-tokenizer pattern `{}` is not accepted by PCRE2: {} at byte {}", pattern_, reason(error),
                      offset);
    }
    // Without JIT (unsupported processor, memory that may not be executable) the interpreter gives the same matches.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  // `piece` is valid UTF-8.
  void cut(std::string_view piece, const Emit& emit) const {
    if (piece.find(kMongolianSeparator) == std::string_view::npos) {
      cut_at_matches(piece, piece, emit);
    } else {
      cut_at_matches(with_unicode_white_space(piece), piece, emit);
    }
  }

 private:
  // Matches `subject`, hands out the same offsets of `piece`.
  void cut_at_matches(std::string_view subject, std::string_view piece, const Emit& emit) const {
    const MatchData data(pcre2_match_data_create(1, nullptr));
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(data.get());
    size_t done = 0;
    size_t from = 0;
    while (from < subject.size() && match(subject, from, data.get())) {
      const size_t begin = found[0];
      const size_t end = found[1];
      if (begin < done || end < begin) throw DataError("the pre-tokenizer pattern `{}` matches backwards", pattern_);
      if (begin == end) {  // an empty match cuts nothing; look on behind the next character
        if (begin == subject.size()) break;
        from = begin + utf8_character_size(subject.substr(begin));
        continue;
      }
      if (begin > done) emit(piece.substr(done, begin - done));
      emit(piece.substr(begin, end - begin));
      done = from = end;
    }
    if (done < piece.size()) emit(piece.substr(done));
  }

  bool match(std::string_view subject, size_t from, pcre2_match_data* data) const {
    const auto attempt = [&](uint32_t options) {
      return pcre2_match(code_.get(), units(subject), subject.size(), from, PCRE2_NO_UTF_CHECK | options, data,
                         nullptr);
    };
    int result = attempt(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = attempt(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      throw DataError("the pre-tokenizer pattern `{}` failed at byte {} of a text of {} bytes: {}", pattern_, from,
                      subject.size(), reason(result));
    }
    return true;
  }

  std::string pattern_;
  Code code_;
};

PreTokenizer::PreTokenizer(std::vector<SplitRule> rules) : rules_(std::move(rules)) {
  for (const SplitRule& rule : rules_) splitters_.push_back(std::make_shared<const Splitter>(rule));
}

void PreTokenizer::apply(size_t step, std::string_view piece, const Emit& emit) const {
  if (step == splitters_.size()) {
    emit(piece);
  } else if (step + 1 == splitters_.size()) {
    splitters_[step]->cut(piece, emit);
  } else {
    splitters_[step]->cut(piece, [&](std::string_view smaller) { apply(step + 1, smaller, emit); });
  }
}

void PreTokenizer::for_each(std::string_view text, const Emit& emit) const {
  while (!text.empty()) {
    const size_t valid = utf8_valid_prefix(text);
    if (valid > 0) apply(0, text.substr(0, valid), emit);
    text.remove_prefix(valid);
    size_t broken = 0;
    while (broken < text.size() && utf8_character_size(text.substr(broken)) == 0) ++broken;
    if (broken > 0) emit(text.substr(0, broken));
    text.remove_prefix(broken);
  }
}

}  // namespace conclave::text
