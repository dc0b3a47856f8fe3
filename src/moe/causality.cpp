// SPDX-License-Identifier: Apache-2.0
#include "moe/causality.h"

#include <array>

#include "core/error.h"

namespace conclave::moe {

std::span<const ClassOfOption> classes_of_options() {
  static const std::array options{
      ClassOfOption{"hash", "feature: previous", Causality::kPositionCausal,
                    [](const RouterConfig& c) { return c.hash && c.hash->feature == HashFeature::kPrevious; }},
      ClassOfOption{"lory", "first: own", Causality::kLeaky,
                    [](const RouterConfig& c) { return c.lory && c.lory->first == FirstSegment::kOwn; }},
  };
  return options;
}

Causality causality_of(const RouterConfig& config) {
  const Router::Row* row = Router::find(config.type);
  check(row != nullptr, "the class of a router that there is");
  for (const auto& option : classes_of_options())
    if (option.type == config.type && option.given(config)) return option.causality;
  return row->info.causality;
}

std::string class_text(const MethodInfo& info) {
  std::string text(name_of(info.causality));
  for (const auto& [type, option, causality, given] : classes_of_options())
    if (type == info.type) text += fmt::format(", {} with {}", name_of(causality), option);
  return text;
}

}  // namespace conclave::moe
