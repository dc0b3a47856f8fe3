// SPDX-License-Identifier: Apache-2.0
#include "verify/costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "core/error.h"
#include "train/memory_plan.h"

namespace conclave::verify {
namespace {

constexpr double kFlopsPerCore = 2e10;  // of a training step with small products
constexpr double kLongSeconds = 900;
constexpr const char* kAdvice =
    "What is verified does not depend on the size; shrink it, for example:\n"
    "    --set model.num_layers=2 --set model.hidden_size=256 --set model.vocab_size=512\n"
    "    --set moe.expert_hidden_size=64 --set data.seq_len=64 --set train.micro_batch_size=1\n"
    "  or take fewer ranks (-n 2) or steps (--steps 1).";

int64_t rank_bytes(const train::RunConfig& config, const model::ModelShape& shape, const Layout& layout) {
  return model::rank_bytes(shape, train::memory_plan(with_layout(config, layout))).total();
}

}  // namespace

Memory host_memory() {
  Memory memory;
  std::ifstream file("/proc/meminfo");
  for (std::string name, unit; file >> name;) {
    int64_t kib = 0;
    if (!(file >> kib)) break;
    std::getline(file, unit);
    if (name == "MemTotal:") memory.total = kib * 1024;
    if (name == "MemAvailable:") memory.available = kib * 1024;
  }
  return memory;
}

Costs costs_of(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
               const HostShare& host) {
  const auto shape = model::model_shape(config.model, config.moe);
  Costs costs;
  for (const Layout& layout : plan.layouts) {
    const int64_t ranks = std::min<int64_t>(host.ranks, layout.ranks());
    costs.bytes = std::max(costs.bytes, ranks * rank_bytes(config, shape, layout));
  }
  // Of each step the reference keeps gradient, weights and two moments.
  const int64_t parameters = model::count_parameters(shape, model::Counter::kExact).total();
  costs.bytes += host.references * options.steps * 16 * parameters;
  const auto flops = model::count_flops(shape, model::Counter::kExact, config.data.seq_len).training();
  const auto tokens = config.train.global_batch_size * config.data.seq_len * options.steps;
  const auto runs = static_cast<double>(plan.layouts.size()) + static_cast<double>(host.references);
  costs.seconds = static_cast<double>(flops) * static_cast<double>(tokens) * runs / (host.cores * kFlopsPerCore);
  return costs;
}

std::vector<std::string> cost_warnings(const Costs& costs, const HostShare& host) {
  std::vector<std::string> warnings;
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const std::string size = fmt::format("the copies of the model take about {:.1f} GiB", gib(costs.bytes));
  if (host.memory.total > 0 && costs.bytes > host.memory.total)
    throw ConfigError("{}, but this host has {:.1f} GiB. {}", size, gib(host.memory.total), kAdvice);
  if (host.memory.available > 0 && costs.bytes > host.memory.available)
    warnings.push_back(fmt::format("{}, but {:.1f} GiB are free. {}", size, gib(host.memory.available), kAdvice));
  if (costs.seconds > kLongSeconds)
    warnings.push_back(fmt::format("this takes about {:.0f} minutes on {} cores. {}", costs.seconds / 60, host.cores,
                                   warnings.empty() ? kAdvice : "The same advice."));
  return warnings;
}

}  // namespace conclave::verify
