// SPDX-License-Identifier: Apache-2.0
#include "config/problems.h"

#include <algorithm>
#include <tuple>

#include "core/error.h"

namespace conclave::config {
namespace {

constexpr size_t kPrinted = 10;
constexpr size_t kKept = 200;
constexpr size_t kExcerptWidth = 110;  // bytes of a long line that are shown

std::string_view line_of(std::string_view text, int line) {
  for (int skip = 1; skip < line; ++skip) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return {};
    text.remove_prefix(end + 1);
  }
  return text.substr(0, std::min(text.find('\n'), text.find('\r')));
}

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

size_t characters(std::string_view bytes) {
  return bytes.size() - static_cast<size_t>(std::count_if(bytes.begin(), bytes.end(), continues_character));
}

// "a.b" lies inside "a", "a[0].c" too.
bool inside(std::string_view path, std::string_view section) {
  return path.starts_with(section) &&
         (path.size() == section.size() || path[section.size()] == '.' || path[section.size()] == '[');
}

}  // namespace

std::string Origin::where() const {
  if (!source) return via.empty() ? "default" : "default (" + via + ")";
  std::string place =
      source->argument || line <= 0 ? source->name : fmt::format("{}:{}:{}", source->name, line, column);
  return via.empty() ? place : place + " (" + via + ")";
}

std::string Origin::excerpt() const {
  if (!source || line <= 0) return {};
  std::string_view shown = line_of(source->text, line);
  size_t at = std::min(static_cast<size_t>(std::max(column - 1, 0)), shown.size());
  if (shown.size() > kExcerptWidth) {
    size_t start = at > kExcerptWidth / 2 ? at - kExcerptWidth / 2 : 0;
    while (start > 0 && continues_character(shown[start])) --start;
    size_t end = std::min(start + kExcerptWidth, shown.size());
    while (end < shown.size() && continues_character(shown[end])) ++end;
    shown = shown.substr(start, end - start);
    at -= start;
  }
  std::string clean(shown);
  std::replace_if(
      clean.begin(), clean.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  const std::string_view marked = shown.substr(at, static_cast<size_t>(std::max(length, 1)));
  const std::string number = source->argument ? "" : std::to_string(line);
  return fmt::format("{:>6} | {}\n{:>6} | {:{}}{:^>{}}\n", number, clean, "", "", characters(shown.substr(0, at)), "",
                     std::max<size_t>(characters(marked), 1));
}

void Problems::add(const Origin& origin, const std::string& path, const std::string& message) {
  ++count_;
  if (kept_.size() >= kKept) return;
  kept_.push_back({origin, path, message});
  if (!path.empty()) paths_.insert(path);
}

void Problems::fail(const Origin& origin, const std::string& path, const std::string& message) {
  add(origin, path, message);
  throw ConfigError("{}", report());
}

bool Problems::concerns(std::string_view path) const {
  return std::any_of(paths_.begin(), paths_.end(),
                     [&](const std::string& bad) { return inside(bad, path) || inside(path, bad); });
}

void Problems::throw_if_any() const {
  if (count_ > 0) throw ConfigError("{}", report());
}

std::string Problems::report() const {
  // Files keep the order in which they were met; inside a file the line decides.
  std::vector<const Source*> met;
  std::vector<std::tuple<size_t, int, int, const Problem*>> order;
  for (const Problem& problem : kept_) {
    const Source* source = problem.origin.source.get();
    const size_t rank = static_cast<size_t>(std::find(met.begin(), met.end(), source) - met.begin());
    if (rank == met.size()) met.push_back(source);
    order.emplace_back(rank, problem.origin.line, problem.origin.column, &problem);
  }
  std::sort(order.begin(), order.end());  // kept_ is one array, so equal places keep the order of finding
  std::string text = fmt::format("invalid configuration: {} problem{}\n", count_, count_ == 1 ? "" : "s");
  for (size_t i = 0; i < std::min(order.size(), kPrinted); ++i) {
    const Problem& problem = *std::get<const Problem*>(order[i]);
    if (problem.origin.source) text += problem.origin.where() + ": ";
    if (!problem.path.empty()) text += problem.path + ": ";
    text += problem.message + "\n" + problem.origin.excerpt();
  }
  if (count_ > kPrinted) text += fmt::format("... and {} more\n", count_ - kPrinted);
  text.pop_back();
  return text;
}

}  // namespace conclave::config
