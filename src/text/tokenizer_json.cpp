// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_json.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "text/byte_level.h"
#include "text/utf8.h"

namespace conclave::text {
namespace {

using Json = nlohmann::json;

// Reads one file; every complaint carries its name.
class Parser {
 public:
  Parser(std::string_view text, const std::string& where) : where_(where) {
    try {
      root_ = Json::parse(text);
    } catch (const Json::parse_error& error) {
      fail("not valid JSON: {}", error.what());
    }
  }

  TokenizerParts run() {
    require_object(root_, "the file");
    refuse_unless_null("truncation");
    refuse_unless_null("padding");
    refuse_unless_null("normalizer");
    read_model();
    read_added_tokens();
    require_every_id();
    read_pre_tokenizer(member(root_, "pre_tokenizer"));
    check_post_processor(member(root_, "post_processor"));
    const std::string decoder = kind_of(member(root_, "decoder"));
    if (decoder != "ByteLevel") unsupported("decoder", decoder);
    return std::move(parts_);
  }

 private:
  const std::string& where_;
  Json root_;
  TokenizerParts parts_;
  std::vector<char> have_;                          // by id
  std::unordered_map<std::string, int32_t> vocab_;  // as spelled in the file

  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw DataError("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...));
  }
  [[noreturn]] void unsupported(std::string_view part, std::string_view component) const {
    fail(
        "{} {} is not supported; we load byte-level BPE with no normalizer, pre-tokenizer ByteLevel or "
        "Sequence[Split, Digits, ByteLevel], and decoder ByteLevel",
        part, component);
  }

  const Json& member(const Json& object, const char* key) const {
    static const Json kNull;
    const auto found = object.find(key);
    return found == object.end() ? kNull : *found;
  }
  void require_object(const Json& value, std::string_view what) const {
    if (!value.is_object()) fail("{} must be a JSON object, not {}", what, value.type_name());
  }
  bool flag(const Json& object, const char* key, bool otherwise) const {
    const Json& value = member(object, key);
    if (value.is_null()) return otherwise;
    if (!value.is_boolean()) fail("`{}` must be true or false, not {}", key, value.dump());
    return value.get<bool>();
  }
  // The `type` of a component; "null" for none.
  std::string kind_of(const Json& component) const {
    if (component.is_null()) return "null";
    const Json& type = component.is_object() ? member(component, "type") : component;
    return type.is_string() ? type.get<std::string>() : "without a type";
  }
  void refuse_unless_null(const char* key) const {
    const Json& value = member(root_, key);
    if (!value.is_null()) unsupported(key, kind_of(value) == "without a type" ? "other than null" : kind_of(value));
  }

  // Enters the token that `spelled` stands for; each id once.
  void add_token(const std::string& spelled, int64_t id, std::string bytes) {
    constexpr int64_t kLargestId = 16 << 20;
    if (id < 0 || id > kLargestId) fail("token `{}` has id {}, outside 0 to {}", spelled, id, kLargestId);
    if (static_cast<size_t>(id) >= have_.size()) {
      have_.resize(id + 1);
      parts_.tokens.resize(id + 1);
    }
    if (have_[id]) fail("id {} is given twice; the second time to `{}`", id, spelled);
    have_[id] = true;
    parts_.tokens[id] = std::move(bytes);
  }
  int32_t id_of(const std::string& spelled, size_t rank) const {
    const auto found = vocab_.find(spelled);
    if (found == vocab_.end()) fail("merge {} needs the token `{}`, which model.vocab does not have", rank, spelled);
    return found->second;
  }

  void read_model();
  void read_vocab(const Json& vocab);
  void read_merges(const Json& merges);
  void read_added_tokens();
  void require_every_id() const;
  void read_pre_tokenizer(const Json& component);
  void read_split(const Json& component);
  void read_byte_level(const Json& component, bool alone);
  void check_post_processor(const Json& component) const;
};

void Parser::read_model() {
  const Json& model = member(root_, "model");
  require_object(model, "`model`");
  if (kind_of(model) != "BPE") unsupported("model", kind_of(model));
  const Json& dropout = member(model, "dropout");
  if (!dropout.is_null() && dropout != 0.0) unsupported("model", "BPE with dropout");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json& affix = member(model, key);
    if (!affix.is_null() && affix != "") unsupported("model", fmt::format("BPE with {}", key));
  }
  // `unk_token`, `fuse_unk` and `byte_fallback` say what becomes of a byte without a token; here every byte has one.
  read_vocab(member(model, "vocab"));
  read_merges(member(model, "merges"));
  if (!flag(model, "ignore_merges", false)) return;
  for (const auto& [spelled, id] : vocab_) {
    if (auto bytes = characters_to_bytes(spelled)) parts_.bpe.whole_pieces.emplace(std::move(*bytes), id);
  }
}

void Parser::read_vocab(const Json& vocab) {
  if (!vocab.is_object() || vocab.empty()) fail("model.vocab is missing or is not an object of token -> id");
  for (const auto& [spelled, id] : vocab.items()) {
    if (!id.is_number_integer()) fail("the id of token `{}` must be an integer, not {}", spelled, id.dump());
    // Text that is no byte characters can only be an added token; it stands for itself.
    add_token(spelled, id.get<int64_t>(), characters_to_bytes(spelled).value_or(spelled));
    vocab_.emplace(spelled, id.get<int32_t>());
  }
  for (int byte = 0; byte < 256; ++byte) {
    const std::string spelled = bytes_to_characters(std::string(1, static_cast<char>(byte)));
    const auto found = vocab_.find(spelled);
    if (found == vocab_.end()) {
      fail("model.vocab has no token for byte {:#04x} (`{}`): not a byte-level vocabulary, some text would be lost",
           byte, spelled);
    }
    parts_.bpe.byte_ids[byte] = found->second;
  }
}

void Parser::read_merges(const Json& merges) {
  if (!merges.is_array()) fail("model.merges is missing or is not an array");
  FlatMap<bool> seen;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Json& entry = merges[rank];
    std::string left, right;
    if (entry.is_string()) {  // the older form: "left right"
      const auto& both = entry.get_ref<const std::string&>();
      const size_t space = both.find(' ');
      left = both.substr(0, space);
      if (space != std::string::npos) right = both.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get<std::string>();
      right = entry[1].get<std::string>();
    }
    if (left.empty() || right.empty() || (entry.is_string() && right.find(' ') != std::string::npos)) {
      fail("merge {} must be \"left right\" or [\"left\", \"right\"], not {}", rank, entry.dump());
    }
    const Merge merge{id_of(left, rank), id_of(right, rank), id_of(left + right, rank)};
    bool& again = seen[pair_key(merge.left, merge.right)];
    if (again) fail("merge {} repeats the pair `{}` `{}`", rank, left, right);
    again = true;
    parts_.bpe.merges.push_back(merge);
  }
}

void Parser::read_added_tokens() {
  const Json& list = member(root_, "added_tokens");
  if (list.is_null()) return;
  if (!list.is_array()) fail("`added_tokens` must be an array");
  for (const Json& entry : list) {
    require_object(entry, "an entry of `added_tokens`");
    const Json& content = member(entry, "content");
    const Json& id = member(entry, "id");
    if (!content.is_string() || content.get_ref<const std::string&>().empty() || !id.is_number_integer()) {
      fail("an added token needs a text `content` and an integer `id`: {}", entry.dump());
    }
    const auto text = content.get<std::string>();
    for (const char* key : {"lstrip", "rstrip", "single_word"}) {
      if (flag(entry, key, false)) unsupported("added token", fmt::format("`{}` with {}", text, key));
    }
    const auto known = vocab_.find(text);
    if (known == vocab_.end()) {
      add_token(text, id.get<int64_t>(), text);
    } else if (known->second != id) {
      fail("added token `{}` has id {}, but model.vocab gives it {}", text, id.dump(), known->second);
    }
    for (const AddedToken& other : parts_.added) {
      if (other.content == text) fail("added token `{}` is given twice", text);
    }
    parts_.added.push_back({id.get<int32_t>(), text, flag(entry, "special", false), flag(entry, "normalized", true)});
    parts_.tokens[parts_.added.back().id] = text;
  }
}

void Parser::require_every_id() const {
  const auto gap = std::find(have_.begin(), have_.end(), 0);
  if (gap != have_.end()) {
    fail("no token has id {}, though ids go up to {}: ids must be 0, 1, 2, ... without gaps", gap - have_.begin(),
         have_.size() - 1);
  }
}

void Parser::read_pre_tokenizer(const Json& component) {
  const std::string kind = kind_of(component);
  if (kind == "ByteLevel") return read_byte_level(component, true);
  if (kind != "Sequence") unsupported("pre_tokenizer", kind);
  const Json& steps = member(component, "pretokenizers");
  if (!steps.is_array() || steps.empty()) fail("pre_tokenizer Sequence has no array `pretokenizers`");
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string step = kind_of(steps[i]);
    if (step == "ByteLevel" && i + 1 == steps.size()) {
      read_byte_level(steps[i], steps.size() == 1);
    } else if (step == "Split" && i + 1 < steps.size()) {
      read_split(steps[i]);
    } else if (step == "Digits" && i + 1 < steps.size()) {
      parts_.rules.push_back({flag(steps[i], "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)", false});
    } else {
      unsupported("pre_tokenizer", fmt::format("{} as step {} of {} of a Sequence", step, i + 1, steps.size()));
    }
  }
}

void Parser::read_split(const Json& component) {
  const Json& pattern = member(component, "pattern");
  const Json& behavior = member(component, "behavior");
  if (behavior != "Isolated") unsupported("pre_tokenizer Split", fmt::format("with behavior {}", behavior.dump()));
  if (flag(component, "invert", false)) unsupported("pre_tokenizer Split", "with invert");
  const Json& regex = pattern.is_object() ? member(pattern, "Regex") : pattern;
  const Json& literal = pattern.is_object() ? member(pattern, "String") : pattern;
  if (regex.is_string()) {
    parts_.rules.push_back({regex.get<std::string>(), false});
  } else if (literal.is_string() && !literal.get_ref<const std::string&>().empty()) {
    parts_.rules.push_back({literal.get<std::string>(), true});
  } else {
    fail("pre_tokenizer Split needs a pattern {{\"Regex\": ...}} or {{\"String\": ...}}, not {}", pattern.dump());
  }
}

void Parser::read_byte_level(const Json& component, bool alone) {
  parts_.add_prefix_space = flag(component, "add_prefix_space", true);
  // Behind a Split it would put a space before every piece, not before the text.
  if (parts_.add_prefix_space && !alone)
    unsupported("pre_tokenizer", "ByteLevel with add_prefix_space inside a Sequence");
  if (flag(component, "use_regex", true)) parts_.rules.push_back({std::string(kGpt2Pattern), false});
}

void Parser::check_post_processor(const Json& component) const {
  const std::string kind = kind_of(component);
  if (kind == "null" || kind == "ByteLevel" || kind == "TemplateProcessing") return;
  if (kind != "Sequence") unsupported("post_processor", kind);
  const Json& steps = member(component, "processors");
  if (!steps.is_array()) fail("post_processor Sequence has no array `processors`");
  for (const Json& step : steps) {
    const std::string inner = kind_of(step);
    if (inner != "ByteLevel" && inner != "TemplateProcessing") unsupported("post_processor", inner);
  }
}

}  // namespace

TokenizerParts parse_tokenizer_json(std::string_view json, const std::string& where) {
  return Parser(json, where).run();
}

}  // namespace conclave::text
