// SPDX-License-Identifier: Apache-2.0
#include "text/text_reader.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "text/input_files.h"

namespace conclave::text {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 18;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

std::string_view without_compression(std::string_view path) {
  for (const std::string_view suffix : {".gz", ".zst"}) {
    if (path.ends_with(suffix)) path.remove_suffix(suffix.size());
  }
  return path;
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

const std::vector<std::string_view>& text_suffixes() {
  static const std::vector<std::string_view> kSuffixes = {".txt",   ".txt.gz",   ".txt.zst",
                                                          ".jsonl", ".jsonl.gz", ".jsonl.zst"};
  return kSuffixes;
}

TextReader::TextReader(const std::vector<std::string>& inputs, ReaderOptions options)
    : options_(std::move(options)), files_(list_input_files(inputs, text_suffixes())), buffer_(kBufferBytes) {
  for (const std::string& file : files_) {
    std::error_code ignored;  // opening it will tell
    const auto size = std::filesystem::file_size(file, ignored);
    if (!ignored) total_bytes_ += static_cast<int64_t>(size);
  }
}

bool TextReader::open_next_file() {
  if (stream_) finished_bytes_ += stream_->consumed();
  stream_.reset();
  if (next_file_ == files_.size()) return false;
  path_ = std::make_shared<const std::string>(files_[next_file_++]);
  stream_ = open_stream(*path_);
  is_lines_ = without_compression(*path_).ends_with(".jsonl");
  line_ = 0;
  ready_ = {};
  return true;
}

// Makes ready_ hold something; false at the end of the file.
bool TextReader::fill() {
  if (ready_.empty()) ready_ = {buffer_.data(), stream_->read(buffer_)};
  return !ready_.empty();
}

void TextReader::append(std::string& out, std::string_view part) const {
  if (static_cast<int64_t>(out.size() + part.size()) > options_.largest_document) {
    throw DataError("{}{}: a document of more than {} bytes; split it into smaller ones", *path_,
                    is_lines_ ? fmt::format(":{}", line_) : std::string(), options_.largest_document);
  }
  out.append(part);
}

void TextReader::drop_byte_order_mark(std::string& start) const {
  if (start.starts_with(kByteOrderMark)) start.erase(0, kByteOrderMark.size());
}

bool TextReader::next_line(RawDocument& out) {
  while (fill()) {
    out.content.clear();
    ++line_;
    bool ended = false;
    while (!ended && fill()) {
      const size_t end = ready_.find('\n');
      ended = end != std::string_view::npos;
      append(out.content, ready_.substr(0, end));
      ready_.remove_prefix(ended ? end + 1 : ready_.size());
    }
    if (line_ == 1) drop_byte_order_mark(out.content);
    if (is_blank(out.content)) continue;
    out.path = path_;
    out.line = line_;
    return true;
  }
  return false;
}

bool TextReader::next(RawDocument& out) {
  while (stream_ || open_next_file()) {
    if (is_lines_) {
      if (next_line(out)) return true;
      if (!open_next_file()) return false;
      continue;
    }
    out.content.clear();
    for (; fill(); ready_ = {}) append(out.content, ready_);
    drop_byte_order_mark(out.content);
    out.path = path_;
    out.line = 0;
    open_next_file();
    return true;
  }
  return false;
}

bool TextReader::next_text(std::string& out) {
  RawDocument document;
  if (!next(document)) return false;
  out = document_text(std::move(document), options_.json_key);
  return true;
}

std::string document_text(RawDocument document, const std::string& json_key) {
  if (document.line == 0) return std::move(document.content);
  const auto fail = [&](const std::string& reason) {
    throw DataError("{}:{}: {}", *document.path, document.line, reason);
  };
  nlohmann::json root;
  try {
    root = nlohmann::json::parse(document.content);
  } catch (const nlohmann::json::exception& error) {
    fail(fmt::format("not JSON in UTF-8: {}", error.what()));
  }
  nlohmann::json* value = &root;
  std::string_view rest = json_key;
  while (true) {
    const std::string key(rest.substr(0, rest.find('.')));
    if (!value->is_object()) fail(fmt::format("no object to look up `{}` in, but {}", key, value->type_name()));
    const auto found = value->find(key);
    if (found == value->end()) {
      std::string keys;
      for (const auto& [name, unused] : value->items()) keys += (keys.empty() ? "`" : ", `") + name + "`";
      fail(fmt::format("no member `{}` (of the key {}); there is {}", key, json_key, keys.empty() ? "nothing" : keys));
    }
    value = &*found;
    if (key.size() == rest.size()) break;
    rest.remove_prefix(key.size() + 1);
  }
  if (!value->is_string()) fail(fmt::format("`{}` must be a text, not {}", json_key, value->type_name()));
  return std::move(value->get_ref<std::string&>());
}

}  // namespace conclave::text
