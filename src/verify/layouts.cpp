// SPDX-License-Identifier: Apache-2.0
#include "verify/layouts.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <span>
#include <utility>

#include "config/fields.h"
#include "core/error.h"
#include "model/model_shape.h"
#include "parallel/mesh.h"

namespace conclave::verify {
namespace {

using moe::DispatchType;
using parallel::ExecutorType;
using parallel::Reduction;

constexpr std::array kDispatchers = {DispatchType::kLocal, DispatchType::kAllToAll, DispatchType::kShared,
                                     DispatchType::kHierarchical, DispatchType::kAllGather};
constexpr DispatchType kDense = DispatchType::kAuto;  // exchanges nothing
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

// The reductions that a mesh can have.
std::vector<Reduction> reductions(const train::RunConfig& config, const Layout& mesh, bool canonical,
                                  std::vector<Skipped>& skipped) {
  const std::string name = short_name_of(mesh);
  const auto problem = [&](Reduction reduction) {
    Layout layout = mesh;
    layout.reduction = reduction;
    return problem_of(config, layout);
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

// Every way to cut `ranks` ranks into axes that the mesh can have, with and without shared-out tokens.
std::vector<Layout> meshes(int64_t ranks, bool moe) {
  std::vector<Layout> all;
  for (int64_t dp = 1; dp <= ranks; ++dp)
    for (int64_t tp = 1; dp * tp <= ranks; ++tp)
      for (int64_t etp = 1; etp <= (moe ? tp : 1); ++etp)
        for (int64_t ep = 1; ep <= (moe ? dp * tp : 1); ++ep) {
          if (!parallel::mesh_problems({.dp = dp, .tp = tp, .ep = ep, .etp = etp}, dp * tp).empty()) continue;
          all.push_back({.dp = dp, .ep = ep, .tp = tp, .etp = etp});
          if (tp == 1) continue;
          all.push_back(all.back());
          all.back().sequence_parallel = false;
        }
  return all;
}

// Local is for one rank of ep; most others have nothing to do there.
bool fits(DispatchType dispatch, int64_t ep) {
  if (ep > 1) return dispatch != DispatchType::kLocal;
  return dispatch == DispatchType::kAuto || dispatch == DispatchType::kLocal || dispatch == DispatchType::kAllToAll;
}

// Every exchange that can, with rows between hosts in each format that rounds.
void add_rounded(Layout layout, std::vector<Layout>& layouts) {
  if (layout.ep == 1) return;
  layout.executor = ExecutorType::kSequential;
  for (const auto payload : {moe::DispatchPayload::kBf16, moe::DispatchPayload::kFp8}) {
    for (const auto dispatch : {DispatchType::kAllToAll, DispatchType::kHierarchical, DispatchType::kAllGather}) {
      layout.payload = payload, layout.dispatch = dispatch;
      layouts.push_back(layout);
    }
  }
}

bool has_experts(const train::RunConfig& config) {
  for (const auto& layer : model::model_shape(config.model, config.moe).layers)
    if (layer.moe) return true;
  return false;
}

// Merged experts are whole on every rank.
bool spreads_tensors(const train::RunConfig& config) {
  for (const auto& layer : model::model_shape(config.model, config.moe).layers)
    if (layer.merges()) return false;
  return true;
}

// As many micro-batches, a power of two, for each of `dp` ranks as executors want in flight.
train::RunConfig with_batch_for(const train::RunConfig& config, int64_t dp) {
  train::RunConfig changed = config;
  const auto in_flight = static_cast<uint64_t>(std::max<int64_t>(2, config.parallel.micro_batches_in_flight));
  changed.train.global_batch_size = static_cast<int64_t>(std::bit_ceil(in_flight)) * dp * config.train.micro_batch_size;
  return changed;
}

}  // namespace

std::string short_name_of(const Layout& layout) {
  std::string text = fmt::format("dp {}", layout.dp);
  if (layout.tp > 1) text += fmt::format(" tp {}{}", layout.tp, layout.sequence_parallel ? "" : " nosp");
  text += fmt::format(" ep {}", layout.ep);
  if (layout.etp > 1) text += fmt::format(" etp {}", layout.etp);
  return text + (layout.zero > 0 ? fmt::format(" zero {}", layout.zero) : "");
}

std::string name_of(const Layout& layout) {
  std::string text = fmt::format("{} {}", short_name_of(layout), config::enum_name(layout.reduction));
  if (layout.dispatch != DispatchType::kAuto) text += fmt::format(" {}", dispatch_name_of(layout));
  if (layout.backward_rows) text += fmt::format(" {}", config::enum_name(*layout.backward_rows));
  if (layout.recompute) text += fmt::format(" recompute {}", config::enum_name(*layout.recompute));
  return text + fmt::format(" {}", config::enum_name(layout.executor));
}

std::string dispatch_name_of(const Layout& layout) {
  if (layout.dispatch == DispatchType::kAuto) return "-";
  return fmt::format(
      "{}{}", config::enum_name(layout.dispatch),
      layout.payload == moe::DispatchPayload::kSame ? "" : fmt::format(" {}", config::enum_name(layout.payload)));
}

Promise promise_of(const Layout& layout, bool compressed) {
  if (layout.payload != moe::DispatchPayload::kSame) return Promise::kMeasured;
  // Partial sums per host, rank or chunk round differently.
  const bool other_sums = layout.dispatch == DispatchType::kHierarchical ||
                          layout.dispatch == DispatchType::kAllGather || layout.executor == ExecutorType::kChunked;
  const bool bitwise = layout.reduction == Reduction::kCanonical && layout.tp == 1 && !other_sums;
  return bitwise ? Promise::kBitwise : compressed ? Promise::kMeasured : Promise::kClose;
}

train::RunConfig with_layout(const train::RunConfig& config, const Layout& layout) {
  train::RunConfig changed = config;
  changed.parallel.dp = layout.dp;
  changed.parallel.tp = layout.tp;
  changed.parallel.ep = layout.ep;
  changed.parallel.etp = layout.etp;
  changed.parallel.sequence_parallel = layout.sequence_parallel;
  changed.parallel.zero = layout.zero;
  changed.parallel.reduction = layout.reduction;
  changed.parallel.executor = layout.executor;
  changed.moe.dispatch.type = layout.dispatch;
  changed.moe.dispatch.payload = layout.payload;
  if (layout.backward_rows) changed.moe.dispatch.backward_rows = *layout.backward_rows;
  if (layout.recompute) changed.memory.recompute = *layout.recompute;
  train::resolve(changed, layout.ranks());
  return changed;
}

LayoutPlan plan_layouts(const train::RunConfig& config, int64_t ranks, const std::string& obstacle) {
  LayoutPlan plan;
  const bool moe = has_experts(config);
  const auto dispatchers = moe ? std::span<const DispatchType>(kDispatchers) : std::span(&kDense, 1);
  plan.reference.dispatch = dispatchers[0];
  if (!obstacle.empty() || !problem_of(config, plan.reference).empty()) plan.reference.reduction = Reduction::kFast;
  with_layout(config, plan.reference);
  if (!obstacle.empty()) plan.skipped.push_back({"canonical", obstacle});

  const bool spreads = spreads_tensors(config);
  for (Layout layout : meshes(ranks, moe)) {
    if (layout.tp > 1 && !spreads) continue;
    const auto possible = reductions(config, layout, obstacle.empty(), plan.skipped);
    if (possible.empty()) continue;
    // Every reduction and zero with the plainest exchange; the other exchanges once, with the strictest of them.
    const auto plain = !moe ? DispatchType::kAuto : layout.ep > 1 ? DispatchType::kAllToAll : DispatchType::kLocal;
    const int64_t most_zero = layout.ranks() > 1 ? 1 : 0;
    layout.dispatch = plain;
    for (const Reduction reduction : possible) {
      for (int64_t zero = 0; zero <= most_zero; ++zero) {
        layout.reduction = reduction, layout.zero = zero;
        if (layout != plan.reference) plan.layouts.push_back(layout);
      }
    }
    layout.reduction = possible[0], layout.zero = most_zero;
    for (const auto dispatch : dispatchers) {
      for (const auto executor : kExecutors) {
        const bool done = dispatch == plain && executor == ExecutorType::kSequential;
        if (done || !fits(dispatch, layout.ep)) continue;
        if (!moe && executor == ExecutorType::kChunked) continue;
        layout.dispatch = dispatch, layout.executor = executor;
        plan.layouts.push_back(layout);
      }
    }
    add_rounded(layout, plan.layouts);
  }
  return plan;
}

train::RunConfig with_divisible_batch(const train::RunConfig& config, int64_t ranks) {
  return with_batch_for(config, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(ranks))));
}

std::vector<OtherBatch> other_batches(const train::RunConfig& config, LayoutPlan& plan, int64_t ranks,
                                      const std::string& obstacle) {
  std::vector<OtherBatch> all;
  for (int64_t dp = 3; dp <= ranks; ++dp) {
    if (std::has_single_bit(static_cast<uint64_t>(dp))) continue;
    OtherBatch other{with_batch_for(config, dp), {}};
    const std::string without_bits =
        fmt::format("one rank has no canonical order of {} micro-batches to compare with",
                    other.config.train.global_batch_size / other.config.train.micro_batch_size);
    other.plan = plan_layouts(other.config, ranks, without_bits);
    std::erase_if(other.plan.layouts, [&](const Layout& layout) { return layout.dp != dp; });
    const auto of_dp = [name = fmt::format("dp {} ", dp)](const Skipped& one) { return one.what.starts_with(name); };
    std::erase_if(plan.skipped, of_dp);
    for (auto& one : std::exchange(other.plan.skipped, {}))
      if (of_dp(one)) plan.skipped.push_back(std::move(one));
    if (other.plan.layouts.empty()) continue;
    if (obstacle.empty()) plan.skipped.push_back({fmt::format("dp {} canonical", dp), without_bits});
    all.push_back(std::move(other));
  }
  return all;
}

}  // namespace conclave::verify
