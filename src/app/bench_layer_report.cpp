// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "app/bench_layer.h"

namespace conclave::app {
namespace {

constexpr double kMebibyte = 1 << 20;

std::string line(const TimedWork& work, const LayerBench& bench) {
  const double best_ceiling = bench.ceiling.amount / bench.ceiling.best();
  return fmt::format("  {:<36} {:>10.3f} {:>10.3f} {:>12.1f} {:>8.1f} %\n", work.name, 1e3 * work.median(),
                     1e3 * work.best(), work.speed() / 1e9, 100 * work.speed() / best_ceiling);
}

std::string moves_lines(const RowMoves& moves, const std::string& device) {
  std::string text = fmt::format("  {:<36} {:>10} {:>10} {:>12}\n", "", "median ms", "best ms", "GB/s");
  for (const TimedWork* work : {&moves.own, &moves.copy, &moves.operators})
    text += fmt::format("  {:<36} {:>10.3f} {:>10.3f} {:>12.1f}\n", work->name, 1e3 * work->median(),
                        1e3 * work->best(), work->speed() / 1e9);
  return text +
         fmt::format(
             "  F4, proxy on one device: {:.3f} of the copy's bytes/s, {:.2f} times as fast as ATen's operators{}\n",
             moves.own.speed() / moves.copy.speed(), moves.operators.median() / moves.own.median(),
             device == "cpu" ? " (on the CPU these are references, written to be compared with)" : "");
}

nlohmann::json json_of(const TimedWork& work, const char* unit) {
  return {{"name", work.name}, {unit, work.amount}, {"seconds", work.seconds}, {"median", work.median()}};
}

}  // namespace

std::string layer_report(const LayerBench& bench) {
  std::string text = fmt::format(
      "one MoE layer: {} experts of {}, top-{}, width {}, {} tokens; {} on {}, {} thread{}; busiest expert {:.2f} "
      "means\n",
      bench.experts, bench.expert_width, bench.top_k, bench.width, bench.tokens, bench.precision, bench.device,
      bench.threads, bench.threads == 1 ? "" : "s", bench.busiest);
  text += fmt::format("  {:<36} {:>10} {:>10} {:>12} {:>10}\n", "", "median ms", "best ms", "GFLOP/s", "of ceiling");
  for (const TimedWork* work : {&bench.forward, &bench.training, &bench.dense, &bench.ceiling})
    text += line(*work, bench);
  if (bench.moves) text += moves_lines(*bench.moves, bench.device);
  text += fmt::format(
      "  F1  {:.3f} of the ceiling (median of forward + backward, best of the ceiling), {:.3f} of a dense layer's "
      "products\n",
      bench.of_ceiling(), bench.of_dense());
  text += fmt::format("  F6  {:.3f}: holds {:.2f} MiB for its backward, least {:.2f} MiB\n", bench.held(),
                      static_cast<double>(bench.held_bytes) / kMebibyte,
                      static_cast<double>(bench.least_bytes) / kMebibyte);
  if (bench.ceiling_spread() > 0.1)
    text += "  warning: the ceiling moved by more than 10 %; other work disturbs the figures\n";
  return text;
}

nlohmann::json to_json(const LayerBench& bench) {
  nlohmann::json json{{"device", bench.device},
                      {"precision", bench.precision},
                      {"threads", bench.threads},
                      {"tokens", bench.tokens},
                      {"width", bench.width},
                      {"experts", bench.experts},
                      {"top_k", bench.top_k},
                      {"expert_width", bench.expert_width},
                      {"busiest_expert", bench.busiest},
                      {"forward", json_of(bench.forward, "flops")},
                      {"training", json_of(bench.training, "flops")},
                      {"dense", json_of(bench.dense, "flops")},
                      {"ceiling", json_of(bench.ceiling, "flops")},
                      {"ceiling_spread", bench.ceiling_spread()},
                      {"f1_of_ceiling", bench.of_ceiling()},
                      {"f1_of_dense", bench.of_dense()},
                      {"held_bytes", bench.held_bytes},
                      {"least_bytes", bench.least_bytes},
                      {"f6", bench.held()}};
  if (!bench.moves) return json;
  const RowMoves& moves = *bench.moves;
  json["f4_proxy"] = {{"own", json_of(moves.own, "bytes")},
                      {"copy", json_of(moves.copy, "bytes")},
                      {"operators", json_of(moves.operators, "bytes")},
                      {"of_copy", moves.own.speed() / moves.copy.speed()},
                      {"times_operators", moves.operators.median() / moves.own.median()}};
  return json;
}

}  // namespace conclave::app
