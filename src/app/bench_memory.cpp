// SPDX-License-Identifier: Apache-2.0
#include "app/bench_memory.h"

#include <fmt/format.h>

#include "app/measured_layer.h"
#include "config/fields.h"

namespace conclave::app {

MemoryBench measure_memory(train::RunConfig config) {
  config.train.device = "cpu";
  MemoryBench bench;
  // Of attention the layer has nothing.
  for (const auto recompute : {model::Recompute::kNone, model::Recompute::kFfn, model::Recompute::kFull}) {
    config.memory.recompute = recompute;
    MeasuredLayer layer(config);
    layer.forward();  // what is made on first use is no activation
    layer.backward();
    bench.levels.push_back({recompute, layer.held_bytes()});
    const int64_t widths = layer.shape().top_k * layer.shape().expert_width + layer.shape().shared_width;
    bench.tokens = layer.tokens();
    bench.least_bytes =
        layer.tokens() * (layer.width() + 2 * widths) * static_cast<int64_t>(layer.input().element_size());
  }
  return bench;
}

std::string memory_report(const MemoryBench& bench) {
  constexpr double kMebibyte = 1 << 20;
  std::string text = fmt::format("one MoE layer, {} tokens, least {:.2f} MiB\n  {:<20} {:>10} {:>8}\n", bench.tokens,
                                 static_cast<double>(bench.least_bytes) / kMebibyte, "memory.recompute", "MiB", "F6");
  for (const auto& level : bench.levels)
    text += fmt::format("  {:<20} {:>10.2f} {:>8.3f}\n", config::enum_name(level.recompute),
                        static_cast<double>(level.held_bytes) / kMebibyte, bench.held(level));
  return text;
}

nlohmann::json to_json(const MemoryBench& bench) {
  nlohmann::json json{{"tokens", bench.tokens}, {"least_bytes", bench.least_bytes}};
  for (const auto& level : bench.levels)
    json[std::string(config::enum_name(level.recompute))] = {{"held_bytes", level.held_bytes},
                                                             {"f6", bench.held(level)}};
  return json;
}

}  // namespace conclave::app
