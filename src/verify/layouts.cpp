// SPDX-License-Identifier: Apache-2.0
#include "verify/layouts.h"

#include <fmt/format.h>

#include <array>

#include "config/fields.h"
#include "core/error.h"
#include "model/model_shape.h"

namespace conclave::verify {
namespace {

using moe::DispatchType;
using parallel::ExecutorType;
using parallel::Reduction;

constexpr std::array kDispatchers = {DispatchType::kLocal, DispatchType::kAllToAll, DispatchType::kShared,
                                     DispatchType::kHierarchical, DispatchType::kAllGather};
constexpr std::array kExecutors = {ExecutorType::kSequential, ExecutorType::kChunked, ExecutorType::kInterleaved};

// Why the configuration cannot be had, in one line; empty when it can.
std::string problem_of(const train::RunConfig& config, const Layout& layout) {
  try {
    with_layout(config, layout);
    return "";
  } catch (const ConfigError& error) {
    const std::string text = error.what();
    const size_t start = text.find('\n') + 1;  // behind "invalid configuration: 1 problem"
    return text.substr(start, text.find('\n', start) - start);
  }
}

// The values of `choices` that some layout may have; the others go to `unbuilt`.
template <typename E, size_t kCount>
std::vector<E> built(const train::RunConfig& config, const std::array<E, kCount>& choices, E Layout::*field,
                     std::vector<std::string>& unbuilt) {
  std::vector<E> values;
  for (const E value : choices) {
    Layout layout{.reduction = Reduction::kFast};
    layout.*field = value;
    if (problem_of(config, layout).find("not built yet") == std::string::npos) {
      values.push_back(value);
    } else {
      unbuilt.emplace_back(config::enum_name(value));
    }
  }
  return values;
}

// The reductions that dp and ep can have.
std::vector<Reduction> reductions(const train::RunConfig& config, int64_t dp, int64_t ep, bool canonical,
                                  std::vector<Skipped>& skipped) {
  const std::string name = fmt::format("dp {} ep {}", dp, ep);
  const auto problem = [&](Reduction reduction) {
    return problem_of(config, {.dp = dp, .ep = ep, .reduction = reduction});
  };
  // What fast cannot have, canonical cannot either.
  if (const auto why = problem(Reduction::kFast); !why.empty()) {
    skipped.push_back({name, why});
    return {};
  }
  if (!canonical) return {Reduction::kFast};
  if (const auto why = problem(Reduction::kCanonical); !why.empty()) {
    skipped.push_back({name + " canonical", why});
    return {Reduction::kFast};
  }
  return {Reduction::kCanonical, Reduction::kFast};
}

bool has_experts(const train::RunConfig& config) {
  for (const auto& layer : model::model_shape(config.model, config.moe).layers)
    if (layer.moe) return true;
  return false;
}

}  // namespace

std::string short_name_of(const Layout& layout) {
  return fmt::format("dp {} ep {}{}", layout.dp, layout.ep,
                     layout.zero > 0 ? fmt::format(" zero {}", layout.zero) : "");
}

std::string name_of(const Layout& layout) {
  std::string text = fmt::format("{} {}", short_name_of(layout), config::enum_name(layout.reduction));
  if (layout.dispatch != DispatchType::kAuto) text += fmt::format(" {}", config::enum_name(layout.dispatch));
  return text + fmt::format(" {}", config::enum_name(layout.executor));
}

Promise promise_of(const Layout& layout) {
  // Partial sums per host, rank or chunk round differently.
  const bool other_sums = layout.dispatch == DispatchType::kHierarchical ||
                          layout.dispatch == DispatchType::kAllGather || layout.executor == ExecutorType::kChunked;
  return layout.reduction == Reduction::kCanonical && !other_sums ? Promise::kBitwise : Promise::kClose;
}

train::RunConfig with_layout(const train::RunConfig& config, const Layout& layout) {
  train::RunConfig changed = config;
  changed.parallel.dp = layout.dp;
  changed.parallel.ep = layout.ep;
  changed.parallel.zero = layout.zero;
  changed.parallel.reduction = layout.reduction;
  changed.parallel.executor = layout.executor;
  changed.moe.dispatch.type = layout.dispatch;
  train::resolve(changed, layout.ranks());
  return changed;
}

LayoutPlan plan_layouts(const train::RunConfig& config, int64_t ranks, const std::string& obstacle) {
  LayoutPlan plan;
  const bool moe = has_experts(config);
  const auto executors = built(config, kExecutors, &Layout::executor, plan.unbuilt);
  const auto dispatchers = moe ? built(config, kDispatchers, &Layout::dispatch, plan.unbuilt)
                               : std::vector<DispatchType>{DispatchType::kAuto};
  plan.reference.dispatch = dispatchers.at(0);
  if (!obstacle.empty() || !problem_of(config, plan.reference).empty()) plan.reference.reduction = Reduction::kFast;
  with_layout(config, plan.reference);
  if (!obstacle.empty()) plan.skipped.push_back({"canonical", obstacle});

  const auto add = [&](const Layout& layout) {
    if (layout.ep > 1 && layout.dispatch == DispatchType::kLocal) return;
    if (layout != plan.reference) plan.layouts.push_back(layout);
    if (layout.dp == 1) return;  // nothing to shard
    plan.layouts.push_back(layout);
    plan.layouts.back().zero = 1;
  };
  for (int64_t dp = 1; dp <= ranks; ++dp) {
    for (int64_t ep = 1; ep <= (moe ? dp : 1); ++ep) {
      if (dp % ep != 0) continue;
      for (const Reduction reduction : reductions(config, dp, ep, obstacle.empty(), plan.skipped))
        for (const auto dispatch : dispatchers)
          for (const auto executor : executors) add({dp, ep, dispatch, executor, reduction, 0});
    }
  }
  return plan;
}

}  // namespace conclave::verify
