// SPDX-License-Identifier: Apache-2.0
#include "app/check_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <set>
#include <span>

#include "parallel/mesh.h"
#include "train/hash_tables.h"
#include "train/memory_plan.h"

namespace conclave::app {
namespace {

using train::RunConfig;

// "0 1 2 3", or the first few of many.
std::string few(const std::vector<int64_t>& ranks) {
  constexpr size_t kShown = 8;
  const auto shown = std::span(ranks).first(std::min(kShown, ranks.size()));
  return fmt::format("{}{}", fmt::join(shown, " "), ranks.size() > kShown ? fmt::format(" ... {}", ranks.back()) : "");
}

std::string layout_lines(const RunConfig& config) {
  using parallel::Axis;
  const int64_t ranks = train::world_size(config);
  const auto sizes = parallel::mesh_sizes(config.parallel, ranks);
  const auto& mesh = config.parallel;
  std::string text = fmt::format("layout: {} rank{} = pp {} x dp {} x cp {} x tp {}", ranks, ranks == 1 ? "" : "s",
                                 mesh.pp, *mesh.dp, mesh.cp, mesh.tp);
  if (config.moe.enabled)
    text += fmt::format("; experts over ep {}{}, each on {} rank{}", mesh.ep,
                        mesh.etp > 1 ? fmt::format(" x etp {}", mesh.etp) : "", sizes[Axis::kEdp],
                        sizes[Axis::kEdp] == 1 ? "" : "s");
  text += "\n";
  std::vector<std::string> groups;
  for (const Axis axis : {Axis::kDp, Axis::kTp, Axis::kEdp, Axis::kEp, Axis::kEtp})
    if (sizes[axis] > 1)
      groups.push_back(fmt::format("{} {}", name_of(axis), few(parallel::members_of(axis, 0, sizes))));
  return groups.empty() ? text : text + fmt::format("groups of rank 0: {}\n", fmt::join(groups, "; "));
}

std::string expert_lines(const RunConfig& config, const model::ModelShape& shape) {
  std::set<std::string> kinds;
  size_t dense = 0;
  for (const model::LayerShape& layer : shape.layers) {
    if (layer.merges()) {
      kinds.insert(fmt::format("{} experts of width {}, merged for each {} tokens", layer.num_experts,
                               layer.expert_width, layer.merge_segment));
      continue;
    }
    if (!layer.moe) {
      ++dense;
      continue;
    }
    std::string text = fmt::format("{} experts of {}, {} for each token, {} on each rank", layer.num_experts,
                                   width_text(layer), layer.top_k, layer.num_experts / config.parallel.ep);
    if (layer.shared_width > 0) text += fmt::format(", shared width {}", layer.shared_width);
    kinds.insert(text);
  }
  std::string text = fmt::format("layers: {}, {} of them dense\n", shape.layers.size(), dense);
  for (const std::string& kind : kinds) {
    text += fmt::format("experts: {}{}\n", kind,
                        config.moe.granularity > 1 ? fmt::format(" (granularity {})", config.moe.granularity) : "");
  }
  return text;
}

std::string batch_line(const RunConfig& config) {
  const train::TrainConfig& train = config.train;
  const int64_t micro_batches = train.global_batch_size / train.micro_batch_size;
  return fmt::format("batch: {} sequences of {} tokens = {} micro-batches, {} on each data-parallel rank\n",
                     train.global_batch_size, config.data.seq_len, micro_batches, micro_batches / *config.parallel.dp);
}

std::string gib(int64_t bytes) { return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30)); }

std::string memory_lines(const RunConfig& config, const model::ModelShape& shape) {
  model::MemoryPlan plan = train::memory_plan(config);
  const model::RankBytes bytes = model::rank_bytes(shape, plan);
  std::string text = fmt::format(
      "memory: {} on each rank (parameters {}, gradients {}, moments {}{}, activations about {}, received "
      "gradients {})\n",
      gib(bytes.total()), gib(bytes.parameters), gib(bytes.gradients), gib(bytes.moments),
      plan.zero == 1 ? " (zero 1)" : "", gib(bytes.activations), gib(bytes.received));
  if (plan.reduction != parallel::Reduction::kCanonical) return text;
  const int64_t sets = model::gradient_buffers(plan);
  plan.reduction = parallel::Reduction::kFast;
  const int64_t more = bytes.gradients - model::rank_bytes(shape, plan).gradients;
  return text + fmt::format("reduction canonical: {} gradient sets{}, {} more than fast\n", sets,
                            plan.sources() > 1 ? fmt::format(", {} times for local experts", plan.sources()) : "",
                            gib(more));
}

}  // namespace

std::string check_report(const CheckOptions& options) {
  const auto loaded =
      train::load_config(options.config.file, options.config.overrides, {options.ranks, train::Purpose::kTrain, true});
  const RunConfig& config = loaded.config;
  train::require_embeddings(config);
  const model::ModelShape shape = model::model_shape(config.model, config.moe);
  std::string text =
      layout_lines(config) + expert_lines(config, shape) + batch_line(config) + memory_lines(config, shape);
  for (const std::string& warning : loaded.warnings) text += "warning: " + warning + "\n";
  return text + options.config.file + ": no problems found\n";
}

void add_check_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<CheckOptions>();
  auto* command = app.add_subcommand("check", "find everything that can be wrong before anything is allocated");
  add_config_options(*command, options->config);
  command->add_option("-n,--ranks", options->ranks, "number of ranks the run would have")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->footer("Example: conclave check configs/tiny.yaml -n 2 --set parallel.ep=2");
  command->callback([options, &run] {
    run = [options] {
      fmt::print("{}", check_report(*options));
      return 0;
    };
  });
}

}  // namespace conclave::app
