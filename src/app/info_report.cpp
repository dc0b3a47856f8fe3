// SPDX-License-Identifier: Apache-2.0
#include "app/info_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <vector>

#include "core/error.h"
#include "model/initialisation.h"
#include "train/memory_plan.h"

namespace conclave::app {
namespace {

using model::Counter;
using Row = std::vector<std::string>;

// 1234567 -> "1,234,567"; counts are never negative.
std::string grouped(int64_t value) {
  return value < 1000 ? std::to_string(value) : fmt::format("{},{:03}", grouped(value / 1000), value % 1000);
}

std::string gibibytes(int64_t bytes) { return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30)); }

// First column to the left, the others to the right; the first row is the heading.
std::string table(const std::vector<Row>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (const auto& row : rows) {
    std::string line = fmt::format("{:<{}}", row[0], widths[0]);
    for (size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths[i]);
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text + "\n";
}

std::string feed_forward(const model::LayerShape& layer) {
  if (layer.merges())
    return fmt::format("{} experts of width {}, merged for each {} tokens", layer.num_experts, layer.expert_width,
                       layer.merge_segment);
  if (!layer.moe) return fmt::format("dense, width {}", layer.ffn_width);
  std::string text =
      fmt::format("{} experts of {}, {} for each token", layer.num_experts, width_text(layer), layer.top_k);
  if (layer.shared_width > 0)
    text += fmt::format(", shared width {}{}", layer.shared_width, layer.shared_gate ? " with gate" : "");
  if (layer.ffn_width > 0)
    text += fmt::format(", dense width {} beside{}", layer.ffn_width,
                        layer.residual_dense ? " (experts read the block input)" : "");
  return text;
}

// Neighbouring layers of the same shape share a line.
std::string layer_table(const model::ModelShape& shape, const model::ParameterCount& count) {
  std::vector<Row> rows = {{"layers", "attention", "norms", "dense", "router", "shared", "experts", "total", "active"}};
  std::string legend;
  for (size_t first = 0, last = 0; first < shape.layers.size(); first = last) {
    while (last < shape.layers.size() && shape.layers[last] == shape.layers[first]) ++last;
    const std::string name = last == first + 1 ? fmt::format("{}", first) : fmt::format("{}-{}, each", first, last - 1);
    const auto& layer = count.layers[first];
    rows.push_back({name, grouped(layer.attention), grouped(layer.norms), grouped(layer.ffn), grouped(layer.router),
                    grouped(layer.shared), grouped(layer.experts), grouped(layer.total()), grouped(layer.active())});
    legend += fmt::format("  {}: {}\n", name.substr(0, name.find(',')), feed_forward(shape.layers[first]));
  }
  return "Layers (parameters by the exact counter)\n" + legend + table(rows);
}

std::string parameter_table(const model::ModelShape& shape) {
  const auto exact = count_parameters(shape, Counter::kExact);
  const auto paper = count_parameters(shape, Counter::kPaper);
  const auto row = [&](const char* name, auto value) {
    return Row{name, grouped(value(exact)), grouped(value(paper))};
  };
  return table({{"Parameters", "exact", "paper"},
                row("  total", [](const auto& c) { return c.total(); }),
                row("  active for a token", [](const auto& c) { return c.active(); }),
                row("  active, embedding as a lookup", [](const auto& c) { return c.active_without_lookup(); }),
                row("  experts", [](const auto& c) { return c.experts(); }),
                row("  embedding", [](const auto& c) { return c.embedding; }),
                row("  head (0 = tied)", [](const auto& c) { return c.head; })});
}

std::string flop_table(const model::ModelShape& shape, int64_t length) {
  const auto exact = count_flops(shape, Counter::kExact, length);
  const auto paper = count_flops(shape, Counter::kPaper, length);
  const auto row = [&](const char* name, auto value) {
    return Row{name, grouped(value(exact)), grouped(value(paper))};
  };
  return table({{fmt::format("FLOPs per token, sequences of {}", length), "exact", "paper"},
                row("  attention projections", [](const auto& f) { return f.projections; }),
                row("  attention scores and values", [](const auto& f) { return f.attention; }),
                row("  dense feed-forward", [](const auto& f) { return f.ffn; }),
                row("  router and gate", [](const auto& f) { return f.router; }),
                row("  shared experts", [](const auto& f) { return f.shared; }),
                row("  experts", [](const auto& f) { return f.experts; }),
                row("  head", [](const auto& f) { return f.head; }),
                row("  forward", [](const auto& f) { return f.forward(); }),
                row("  training (forward and backward)", [](const auto& f) { return f.training(); }),
                row("  training, one sequence", [&](const auto& f) { return f.training() * length; })});
}

model::MemoryPlan plan_for(train::RunConfig config, int64_t ranks) {
  auto& parallel = config.parallel;
  const int64_t others = parallel.tp * parallel.cp * parallel.pp;
  parallel.dp = parallel.dp.value_or(ranks / others);
  const int64_t dp = *parallel.dp;
  if (dp < 1 || dp * others != ranks)
    throw ConfigError(
        "{} ranks do not match parallel: dp {} x tp {} x cp {} x pp {}; give -n the product, or change the axes", ranks,
        dp, parallel.tp, parallel.cp, parallel.pp);
  const int64_t micro = config.train.micro_batch_size;
  if (micro < 1 || config.train.global_batch_size % (dp * micro) != 0)
    throw ConfigError("train.global_batch_size {} is not a multiple of dp {} x train.micro_batch_size {}",
                      config.train.global_batch_size, dp, micro);
  return train::memory_plan(config);
}

std::string memory_table(const train::RunConfig& config, const model::ModelShape& shape, int64_t ranks) {
  const auto plan = plan_for(config, ranks);
  const auto bytes = rank_bytes(shape, plan);
  const auto row = [](const std::string& name, int64_t value) { return Row{name, grouped(value), gibibytes(value)}; };
  const bool canonical = plan.reduction == parallel::Reduction::kCanonical;
  const auto sets =
      fmt::format("  gradients ({} sets{})", gradient_buffers(plan),
                  canonical && plan.sources() > 1 ? fmt::format(", x {} for local experts", plan.sources()) : "");
  return fmt::format(
             "Layout: {} ranks, dp {}, tp {}, ep {}, etp {}, {} micro-batches of {} tokens a step, reduction {}, zero "
             "{}, fp32\n",
             ranks, plan.dp, plan.tp, plan.ep, plan.etp, plan.micro_batches, plan.micro_batch_tokens,
             canonical ? "canonical" : "fast", plan.zero) +
         table({{"Bytes on each rank", "bytes", ""},
                row("  parameters", bytes.parameters),
                row(sets, bytes.gradients),
                row("  master copy (fp32: none)", bytes.master),
                row("  AdamW moments", bytes.moments),
                row("  activations (estimate)", bytes.activations),
                row("  gradients under way (estimate)", bytes.received),
                row("  total", bytes.total())});
}

// With init: mup, what docs/training.md says in letters; layers with other widths have rows of their own.
std::string scale_table(const train::RunConfig& config, const model::ModelShape& shape) {
  if (config.model.init != model::Init::kMup) return "";
  const model::Initialisation init(config.model, std::ssize(shape.layers));
  const auto number = [](double value) { return fmt::format("{:.6g}", value); };
  std::vector<Row> rows = {{"Initialisation mup", "deviation", "learning rate"}};
  const auto add = [&](const std::string& name, model::Draw draw) {
    const Row row{"  " + name, number(draw.std), fmt::format("lr x {}", number(draw.lr_scale))};
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(row);
  };
  add("embedding", init.embedding());
  if (!shape.tied) add("head", init.head());
  add(fmt::format("matrices with {} inputs, gates", shape.hidden), init.matrix(shape.hidden));
  add("attention outputs", init.residual(shape.heads * shape.head_dim));
  std::set<double> factors;
  for (const auto& layer : shape.layers) {
    if (layer.moe) add("routers", init.matrix((layer.router_context ? 2 : 1) * shape.hidden));
    std::vector<int64_t> widths = layer.different_widths();
    widths.insert(widths.begin(), {layer.ffn_width, layer.shared_width, layer.fallback_width});
    for (const int64_t width : widths)
      if (width > 0) add(fmt::format("down projections of width {}", width), init.residual(width));
    if (layer.moe) factors.insert(init.weight_scale(config.moe, layer));
  }
  std::string text = table(rows);
  text.pop_back();
  text += fmt::format("  logits x {}, attention scores x {}", number(init.logit_scale()),
                      number(init.score_scale(shape.head_dim).value()));
  for (const double factor : factors) text += fmt::format(", weights of experts x {}", number(factor));
  return text + "\n\n";
}

}  // namespace

std::string info_report(const train::RunConfig& config, int64_t ranks) {
  const auto shape = model::model_shape(config.model, config.moe);
  std::string text =
      fmt::format("Model: {} layers, hidden {}, {} heads of width {} ({} for keys and values), vocabulary {}\n\n",
                  shape.layers.size(), shape.hidden, shape.heads, shape.head_dim, shape.kv_heads, shape.vocab);
  text += layer_table(shape, count_parameters(shape, Counter::kExact));
  text += parameter_table(shape);
  text += flop_table(shape, config.data.seq_len);
  text += memory_table(config, shape, ranks);
  text += scale_table(config, shape);
  if (config.train.distill)
    text += "The teacher of train.distill is in none of these figures; a run says when it starts what it adds.\n";
  return text +
         "exact: every parameter; the matrix products that run, the causal half of attention.\n"
         "paper: ReMoE's closed forms: no norms, router, gates or biases; the full attention square.\n";
}

}  // namespace conclave::app
