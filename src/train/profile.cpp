// SPDX-License-Identifier: Apache-2.0
#include "train/profile.h"

#include <fmt/format.h>

#include <charconv>

namespace conclave::train {
namespace {

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::optional<StepRange> parse_step_range(const std::string& text) {
  const size_t dots = text.find("..");
  const auto first = number(std::string_view(text).substr(0, dots));
  const auto last = dots == std::string::npos ? first : number(std::string_view(text).substr(dots + 2));
  if (!first || !last || *first < 1 || *last < *first) return std::nullopt;
  return StepRange{*first, *last};
}

void Profile::before(int64_t step) {
  if (!range_ || timeline_.on() || step < range_->first || step > range_->last) return;
  world_.barrier();
  timeline_.start();
  begun_ = step;
}

std::string Profile::after(int64_t step) { return range_ && step == range_->last ? finish(step) : ""; }

std::string Profile::finish(int64_t step) { return timeline_.on() ? write(step) : ""; }

std::string Profile::write(int64_t last) {
  timeline_.stop();
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  for (const auto& of_rank : world_.all_gather_text(timeline_.json(world_.rank()))) text += of_rank;
  text.replace(text.size() - 2, 2, "\n]}\n");  // no comma behind the last one
  const std::string name = fmt::format("trace-{}-{}.json", begun_, last);
  directory_.write(world_, name, text);
  return (directory_.where() / name).string();
}

}  // namespace conclave::train
