// SPDX-License-Identifier: Apache-2.0
#include "config/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <unordered_map>

namespace conclave::config {
namespace {

// Builds the tree from yaml-cpp's events, which carry positions and can be stopped at any depth.
class TreeBuilder : public YAML::EventHandler {
 public:
  // Positions of the first line are moved right by `shift` bytes.
  TreeBuilder(const std::shared_ptr<const Source>& source, Problems& problems, size_t shift)
      : source_(source), problems_(problems), shift_(static_cast<int>(shift)) {}

  Node take() { return std::move(root_); }
  bool has_document() const { return documents_ > 0; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) refuse(mark, "a second document starts here; a configuration is one YAML document");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    check_plain(mark, "", anchor);
    Node node;
    node.origin = place(mark, 1);
    accept(std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    check_plain(mark, tag, anchor);
    const bool quoted = tag == "!";
    Node node = scalar_node(value, quoted);
    const size_t shown = std::min(value.find('\n'), value.size());
    node.origin = place(mark, static_cast<int>(shown) + (quoted && shown == value.size() ? 2 : 0));
    accept(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Node::Kind::kList);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Node::Kind::kMap);
  }
  void OnMapEnd() override { close(); }

  Origin place(const YAML::Mark& mark, int length) const {
    return {source_, mark.line + 1, mark.column + 1 + (mark.line == 0 ? shift_ : 0), length, {}};
  }

 private:
  struct Frame {
    Node node;
    bool has_key = false;
    std::string key;
    Origin key_origin;
    std::unordered_map<std::string, int> lines;  // of the keys met so far
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& message) {
    problems_.fail(place(mark, 1), "", message);
  }
  [[noreturn]] void refuse_anchor(const YAML::Mark& mark) {
    refuse(mark, "anchors and aliases are not read here; write the value again, use ${section.key} or include:");
  }
  void check_plain(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) refuse_anchor(mark);
    if (tag.size() > 1) refuse(mark, "tags are not read here; the type of a value follows from its key");
  }
  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Node::Kind kind) {
    check_plain(mark, tag == "?" ? "" : tag, anchor);
    if (frames_.size() >= static_cast<size_t>(kMaxDepth)) {
      refuse(mark, fmt::format("nested deeper than {} levels", kMaxDepth));
    }
    if (!frames_.empty() && frames_.back().node.is_map() && !frames_.back().has_key) {
      refuse(mark, "expected a key, found a list or a section; is a bracket or brace left open?");
    }
    Frame frame;
    frame.node.kind = kind;
    frame.node.origin = place(mark, 1);
    frames_.push_back(std::move(frame));
  }
  void close() {
    Node node = std::move(frames_.back().node);
    frames_.pop_back();
    accept(std::move(node));
  }
  void accept(Node node) {
    if (frames_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = frames_.back();
    if (frame.node.is_list()) {
      frame.node.list.push_back(std::move(node));
    } else if (!frame.has_key) {
      frame.has_key = true;
      frame.key = node.is_null() ? "null" : node.text;
      frame.key_origin = node.origin;
    } else {
      frame.has_key = false;
      const auto [first, fresh] = frame.lines.try_emplace(frame.key, frame.key_origin.line);
      if (fresh) {
        frame.node.map.push_back({frame.key, frame.key_origin, std::move(node)});
      } else {
        problems_.add(frame.key_origin, "",
                      fmt::format("duplicate key '{}', already given in line {}; keep one of them",
                                  frame.key.substr(0, 60), first->second));
      }
    }
  }

  std::shared_ptr<const Source> source_;
  Problems& problems_;
  int shift_;
  int documents_ = 0;
  std::vector<Frame> frames_;
  Node root_;
};

Origin origin_at(const std::shared_ptr<const Source>& source, size_t byte) {
  const std::string_view before = std::string_view(source->text).substr(0, byte);
  const size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return {source,
          static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1,
          static_cast<int>(byte - line_start) + 1,
          1,
          {}};
}

// YAML forbids tabs in indentation, and yaml-cpp's message for it does not say so.
void refuse_tabs(const std::shared_ptr<const Source>& source, Problems& problems) {
  const std::string_view text = source->text;
  for (size_t start = 0; start < text.size();) {
    const size_t word = std::min(text.find_first_not_of(' ', start), text.size());
    const size_t content = text.find_first_not_of(" \t\r", word);
    if (word < text.size() && text[word] == '\t' && content != std::string_view::npos && text[content] != '\n' &&
        text[content] != '#') {
      problems.fail(origin_at(source, word), "", "a tab in the indentation; YAML indents with spaces only");
    }
    const size_t end = text.find('\n', word);
    if (end == std::string_view::npos) return;
    start = end + 1;
  }
}

void refuse_bytes(const std::shared_ptr<const Source>& source, Problems& problems) {
  if (source->text.size() > kMaxBytes) {
    problems.fail(
        {source, 0, 0, 1, {}}, "",
        fmt::format("larger than {} KiB, the limit for a configuration; is it the right file?", kMaxBytes >> 10));
  }
  const size_t bad = find_bad_byte(source->text);
  if (bad == std::string_view::npos) return;
  problems.fail(
      origin_at(source, bad), "",
      fmt::format("byte 0x{:02x} at offset {} is not text; a configuration is UTF-8 without control characters",
                  static_cast<unsigned char>(source->text[bad]), bad));
}

// Length of the UTF-8 sequence at `i`, 0 when it is malformed.
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t j) { return j < text.size() ? static_cast<unsigned char>(text[j]) : 0U; };
  const unsigned lead = byte(i);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  for (size_t j = 1; j < length; ++j) {
    if ((byte(i + j) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(i + 1);  // overlong forms, surrogates, beyond U+10FFFF
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) || (lead == 0xF0 && second < 0x90) ||
      (lead == 0xF4 && second > 0x8F)) {
    return 0;
  }
  return length;
}

}  // namespace

size_t find_bad_byte(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (length == 0 || (c < 0x20 && c != '\n' && c != '\t' && c != '\r') || c == 0x7F) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::shared_ptr<const Source> read_source(const std::filesystem::path& file, const std::string& shown) {
  auto source = std::make_shared<Source>();
  source->name = shown;
  source->directory = file.parent_path();
  Problems problems;
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) {
    problems.fail({}, "", fmt::format("{}: is a directory; name a YAML file", shown));
  }
  errno = 0;
  std::ifstream stream(file, std::ios::binary);
  if (!stream) {
    problems.fail({}, "", fmt::format("{}: cannot be opened ({})", shown, std::strerror(errno)));
  }
  std::string text(kMaxBytes + 4, '\0');  // a byte-order mark and one byte too many
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(stream.gcount()));
  if (stream.bad()) problems.fail({}, "", fmt::format("{}: cannot be read ({})", shown, std::strerror(errno)));
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  source->text = std::move(text);
  return source;
}

Node parse_yaml(const std::shared_ptr<const Source>& source, Problems& problems, size_t start) {
  refuse_bytes(source, problems);
  if (!source->argument) refuse_tabs(source, problems);
  TreeBuilder builder(source, problems, start);
  try {
    std::istringstream stream(source->text.substr(start));
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    problems.fail(builder.place(error.mark, 1), "", "not valid YAML: " + error.msg);
  }
  Node root = builder.take();
  if (!builder.has_document()) root.origin = {source, 1, static_cast<int>(start) + 1, 1, {}};
  return root;
}

}  // namespace conclave::config
