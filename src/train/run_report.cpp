// SPDX-License-Identifier: Apache-2.0
#include "train/run_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "train/memory_plan.h"

namespace conclave::train {
namespace {

std::string row(const std::string& label, const std::string& text) { return fmt::format("  {:<10} {}\n", label, text); }

std::string host_text(const std::vector<std::string>& hosts) {
  auto unique = hosts;
  std::sort(unique.begin(), unique.end());
  unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
  return fmt::format("{} rank{} on {} host{} ({})", hosts.size(), hosts.size() == 1 ? "" : "s", unique.size(),
                     unique.size() == 1 ? "" : "s", fmt::join(unique, ", "));
}

std::string layout_text(const RunConfig& config) {
  const parallel::ParallelConfig& p = config.parallel;
  std::string text = fmt::format("dp {}", *p.dp);
  if (p.tp > 1)
    text += fmt::format(" x tp {} ({} sequence parallelism)", p.tp, p.sequence_parallel ? "with" : "without");
  text += fmt::format(", experts over ep {}", p.ep);
  if (p.etp > 1) text += fmt::format(" x etp {}", p.etp);
  return text + fmt::format(", reduction {}, zero {}",
                            p.reduction == parallel::Reduction::kCanonical ? "canonical" : "fast", p.zero);
}

std::string model_text(const model::ModelShape& shape) {
  const auto moe = std::find_if(shape.layers.begin(), shape.layers.end(), [](const auto& l) { return l.moe; });
  std::string text = fmt::format("{} layers, width {}, {} heads ({} key/value)", shape.layers.size(), shape.hidden,
                                 shape.heads, shape.kv_heads);
  if (moe != shape.layers.end()) {
    text += fmt::format(", {} experts of {}, {} per token", moe->num_experts, width_text(*moe), moe->top_k);
    if (moe->shared_width > 0) text += fmt::format(", shared expert of width {}", moe->shared_width);
  }
  return text;
}

}  // namespace

std::string startup_block(const RunConfig& config, const parallel::Mesh& mesh, const data::BatchLoader& batches,
                          const Surroundings& around) {
  const auto shape = model::model_shape(config.model, config.moe);
  const auto parameters = model::count_parameters(shape, model::Counter::kExact);
  const auto flops = model::count_flops(shape, model::Counter::kExact, config.data.seq_len);
  const auto bytes = model::rank_bytes(shape, memory_plan(config));
  const double tokens = static_cast<double>(config.train.steps * config.train.global_batch_size * config.data.seq_len);
  std::string text = around.version + "\n";
  text += row("ranks", fmt::format("{}, {} thread{} each, transport {}", host_text(around.hosts), around.threads,
                                   around.threads == 1 ? "" : "s", around.transport));
  text += row("layout", layout_text(config));
  text += row("model", model_text(shape));
  text += row("", fmt::format("{} parameters, {} active, {} embedding; {} FLOPs per token in training",
                              short_count(parameters.total()), short_count(parameters.active()),
                              short_count(parameters.embedding), short_count(static_cast<double>(flops.training()))));
  const auto mb = [](int64_t n) { return fmt::format("{:.0f} MB", static_cast<double>(n) / 1e6); };
  text += row("memory", fmt::format("{} per rank: parameters {}, gradients {}, moments {}, activations about {}, "
                                    "received gradients {}",
                                    mb(bytes.total()), mb(bytes.parameters), mb(bytes.gradients), mb(bytes.moments),
                                    mb(bytes.activations), mb(bytes.received)));
  const auto epochs = batches.epochs(config.train.steps * config.train.global_batch_size);
  for (size_t i = 0; i < batches.sources().size(); ++i) {
    text +=
        row(i == 0 ? "data" : "", fmt::format("{} {:.0f}% of the mixture, {:.2f} epochs", batches.sources()[i].name(),
                                              100 * batches.mixture().share(i), epochs[i]));
  }
  text += row("schedule",
              fmt::format("{} steps of {} tokens = {} ({:.1f} per active parameter), warm-up {}, lr {:.1e} to {:.1e}",
                          config.train.steps, config.train.global_batch_size * config.data.seq_len, short_count(tokens),
                          tokens / static_cast<double>(parameters.active()), config.optim.warmup.of(config.train.steps),
                          config.optim.lr, config.optim.min_lr));
  return text + row("run", around.run.string());
}

std::string end_block(const Trainer& trainer, const RunConfig& config, const Surroundings& around) {
  const auto& metrics = trainer.metrics();
  const double tokens = static_cast<double>((config.train.steps - trainer.first_step()) *
                                            config.train.global_batch_size * config.data.seq_len);
  std::string text = "done\n";
  text += row("loss", fmt::format("last {:.4f}, best {:.4f}", metrics.last_loss(), metrics.best_loss()));
  text += row("time", fmt::format("{} for {} tokens, {} tok/s, goodput {:.0f}%", short_time(trainer.seconds()),
                                  short_count(tokens), short_count(metrics.tokens_per_second()),
                                  trainer.seconds() > 0 ? 100 * metrics.useful_seconds() / trainer.seconds() : 0.0));
  text += evaluation_table(trainer.last_evaluation());
  const auto run = around.run.string();
  return text + row("next", fmt::format("conclave eval {}", run)) +
         row("", fmt::format("conclave sample {} --prompt \"The \"", run)) +
         row("", fmt::format("conclave train ... --run {} --set train.steps={}   (goes on from here)", run,
                             2 * config.train.steps));
}

std::string evaluation_table(const std::vector<Evaluation>& results) {
  if (results.empty()) return "";
  std::string text = fmt::format("  {:<16} {:>10} {:>12} {:>10}\n", "validation", "loss", "perplexity", "tokens");
  for (const auto& r : results)
    text += fmt::format("  {:<16} {:>10.4f} {:>12.2f} {:>10}\n", r.source, r.loss, std::exp(r.loss), r.targets);
  return text;
}

std::string expert_table(const std::vector<Evaluation>& results, const std::vector<int>& moe_layers) {
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t l = 0; l < moe_layers.size(); ++l) {
    for (const auto& result : results) {
      const auto& load = result.layers[l].dispatched_E;
      const double all = static_cast<double>(std::accumulate(load.begin(), load.end(), int64_t{0}));
      std::vector<size_t> order(load.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return load[a] > load[b]; });
      std::string experts;
      for (size_t i = 0; i < std::min(kShown, order.size()); ++i) {
        experts += fmt::format("  e{:<3} {:>4.1f}%", order[i],
                               all > 0 ? 100 * static_cast<double>(load[order[i]]) / all : 0.0);
      }
      const bool first = &result == &results.front();
      text += fmt::format("  {:<9} {:<16}{}\n", first ? fmt::format("layer {}", moe_layers[l]) : "", result.source,
                          experts);
    }
  }
  return text;
}

checkpoint::Json environment(const RunConfig& config, const parallel::Mesh& mesh, const Surroundings& around) {
  return {{"version", around.version}, {"hosts", around.hosts},    {"transport", around.transport},
          {"threads", around.threads}, {"dp", mesh.dp().size()},   {"tp", mesh.tp().size()},
          {"ep", mesh.ep().size()},    {"etp", mesh.etp().size()}, {"zero", config.parallel.zero},
          {"seed", config.train.seed}};
}

}  // namespace conclave::train
