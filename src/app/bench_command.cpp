// SPDX-License-Identifier: Apache-2.0
#include "app/bench_command.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/bench_dispatch.h"
#include "app/bench_layer.h"
#include "app/bench_memory.h"
#include "app/bench_overlap.h"
#include "app/bench_scaling.h"
#include "app/bench_step.h"
#include "app/config_options.h"
#include "app/gemm_speed.h"
#include "app/rank_device.h"
#include "app/rank_resources.h"
#include "config/fields.h"
#include "core/error.h"
#include "model/product_shapes.h"

namespace conclave::app {
namespace {

struct BenchOptions {
  ConfigOptions config;
  StepBenchOptions step;
  DispatchBenchOptions dispatch;
  int64_t exchanges = -1;
  LayerBenchOptions layer;
  OverlapOptions overlap;
  ScalingOptions scaling;
  std::string json;
};

// The three passes of every weight over one micro-batch, experts under balanced load.
std::vector<Product> model_products(const train::RunConfig& config) {
  constexpr std::pair<const char*, Pass> kPasses[] = {{"forward", Pass::kForward},
                                                      {"input gradient", Pass::kInputGradient},
                                                      {"weight gradient", Pass::kWeightGradient}};
  const auto tokens = static_cast<double>(config.train.micro_batch_size * config.data.seq_len);
  std::vector<Product> products;
  for (const auto& [name, shape, row_share] : model::product_shapes(model::model_shape(config.model, config.moe))) {
    const auto rows = std::max<int64_t>(1, static_cast<int64_t>(tokens * row_share));
    for (const auto& [pass_name, pass] : kPasses)
      products.push_back({fmt::format("{}, {}", name, pass_name), rows, shape.depth, shape.columns, pass});
  }
  return products;
}

int bench_gemm(const BenchOptions& options) {
  std::vector<Product> products{ceiling_product()};
  if (!options.config.file.empty())
    for (auto& product : model_products(load_without_data(options.config, 1))) products.push_back(product);
  const int threads = rank_threads(process_cores());
  at::set_num_threads(threads);
  const std::vector<Product> first{ceiling_product()};
  measure(first, 0.7);  // threads and clock come up to speed
  const auto speeds = measure(products, 0.7);
  fmt::print("fp32, {} thread{}\n  {:<44} {:>6} {:>6} {:>7} {:>9} {:>9} {:>7}\n", threads, threads == 1 ? "" : "s",
             "product", "rows", "depth", "columns", "best", "median", "share");
  for (size_t i = 0; i < products.size(); ++i) {
    const auto& p = products[i];
    fmt::print("  {:<44} {:>6} {:>6} {:>7} {:>9.1f} {:>9.1f} {:>5.0f} %\n", p.name, p.rows, p.depth, p.columns,
               speeds[i].best_gflops, speeds[i].median_gflops, 100 * speeds[i].best_gflops / speeds[0].best_gflops);
  }
  fmt::print("GFLOP/s of seven repetitions; share: best against the best of the first line\n");
  return 0;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path);
  out << text << "\n";
  out.flush();
  if (!out) throw IoError("cannot write {}: check the directory and the space left", path);
}

nlohmann::json to_json(const StepBench& bench) {
  return {{"seconds", bench.seconds},
          {"losses", bench.losses},
          {"reference_losses", bench.reference_losses},
          {"ceiling_gflops", bench.ceiling_gflops},
          {"ceiling_spread", bench.ceiling_spread},
          {"tokens_per_step", bench.tokens},
          {"flops_per_token", bench.flops_per_token},
          {"threads", bench.threads}};
}

int bench_step_in(comm::World& world, const BenchOptions& options) {
  const auto config = load_without_data(options.config, world.size());
  return with_memory_advice(config, [&] {
    const auto bench = bench_step(world, config, options.step);
    if (world.rank() != 0) return 0;
    fmt::print("{}: {}", options.config.file, step_report(bench, config, world.size()));
    if (!options.json.empty()) write_text(options.json, to_json(bench).dump(2));
    return 0;
  });
}

int bench_layer_in(comm::World& world, const BenchOptions& options) {
  const auto config = load_without_data(options.config, world.size());
  return with_memory_advice(config, [&] {
    const auto bench = bench_layer(world, config, options.layer);
    fmt::print("{}: {}", options.config.file, layer_report(bench));
    if (!options.json.empty()) write_text(options.json, to_json(bench).dump(2));
    return 0;
  });
}

int bench_memory(const BenchOptions& options) {
  const auto bench = measure_memory(load_without_data(options.config, 1));
  fmt::print("{}: {}", options.config.file, memory_report(bench));
  if (!options.json.empty()) write_text(options.json, to_json(bench).dump(2));
  return 0;
}

int bench_dispatch_in(comm::World& world, const BenchOptions& options) {
  if (options.exchanges >= 0) {
    run_exchanges(world, options.dispatch, options.exchanges);
    return 0;
  }
  const auto bench = bench_dispatch(world, options.dispatch);
  if (world.rank() != 0) return 0;
  fmt::print("{}", dispatch_report(bench));
  if (!options.json.empty()) write_text(options.json, dispatch_json(bench));
  return 0;
}

int bench_overlap_in(comm::World& world, const BenchOptions& options) {
  const auto config = load_without_data(options.config, world.size());
  const auto bench = bench_overlap(world, config, options.overlap);
  if (world.rank() != 0) return 0;
  fmt::print("{}: {}", options.config.file, overlap_report(bench));
  if (!options.json.empty()) write_text(options.json, to_json(bench).dump(2));
  return 0;
}

int bench_scaling_in(comm::World& world, const BenchOptions& options) {
  const auto config = load_without_data(options.config, world.size());
  const auto bench = bench_scaling(world, config, options.scaling);
  if (world.rank() != 0) return 0;
  fmt::print("{}: {}", options.config.file, scaling_report(bench));
  if (!options.json.empty()) write_text(options.json, to_json(bench).dump(2));
  return 0;
}

void add_gemm(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command = bench.add_subcommand("gemm", "matrix products: the machine's ceiling, and those of a model");
  add_config_options(*command, options->config);
  command->get_option("CONFIG")->required(false);
  command->footer("Example: conclave bench gemm configs/presets/small-mixtral.yaml");
  command->callback([options, &run] { run = [options] { return bench_gemm(*options); }; });
}

void add_step(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command = bench.add_subcommand("step", "the whole training step beside the GEMM ceiling of the same run");
  add_config_options(*command, options->config);
  command->add_option("--steps", options->step.steps, "timed steps")->check(CLI::Range(1, 100000));
  command->add_option("--warmup", options->step.warmup, "steps before them")->check(CLI::Range(0, 100000));
  command->add_option("--reference", options->step.reference,
                      "weights, tokens and losses written by tools/make_golden.py --peer (its .json)");
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer(
      "Example: one rank, then two\n"
      "  conclave bench step configs/presets/small-mixtral.yaml\n"
      "  mpirun -n 2 conclave bench step configs/presets/small-mixtral.yaml --set parallel.ep=2 --set "
      "train.micro_batch_size=4");
  command->callback([options, &run] {
    run = [options] {
      keep_memory();
      return comm::run_world([&](comm::World& world) { return bench_step_in(world, *options); });
    };
  });
}

void add_layer(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command =
      bench.add_subcommand("layer", "one MoE layer, its time and memory, beside the GEMM ceiling of the same run");
  add_config_options(*command, options->config);
  command->add_option("--repetitions", options->layer.repetitions, "of every measurement, in turns")
      ->check(CLI::Range(1, 1000));
  command->add_option("--seconds", options->layer.seconds, "least time of a repetition")->check(CLI::Range(0.0, 60.0));
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer(
      "Tokens: a micro-batch, train.micro_batch_size x data.seq_len.\n"
      "Example: conclave bench layer configs/presets/small-mixtral.yaml --set train.micro_batch_size=8");
  command->callback([options, &run] {
    run = [options] {
      keep_memory();
      return comm::run_world([&](comm::World& world) { return bench_layer_in(world, *options); });
    };
  });
}

void add_memory(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command = bench.add_subcommand("memory", "what one MoE layer holds for its backward, beside the least");
  add_config_options(*command, options->config);
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer("Example: conclave bench memory configs/presets/small-mixtral.yaml --set train.micro_batch_size=8");
  command->callback([options, &run] { run = [options] { return bench_memory(*options); }; });
}

moe::DispatchPayload payload_of(std::string_view name) {
  for (const auto& [known, payload] : config::EnumNames<moe::DispatchPayload>::kNames)
    if (known == name) return payload;
  throw UsageError("--payload {}: there is no such format", name);
}

void add_dispatch(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command = bench.add_subcommand(
      "dispatch", "token exchange: every dispatcher against pack, MPI_Alltoallv and regroup, on the ranks of mpirun");
  auto& dispatch = options->dispatch;
  const auto list = [&](const char* name, std::vector<int64_t>& values, const char* text) {
    command->add_option(name, values, text)->delimiter(',')->check(CLI::Range(1, 1 << 20))->capture_default_str();
  };
  list("--tokens", dispatch.tokens, "tokens of a rank, one or more numbers");
  list("--width", dispatch.widths, "numbers in a token's row");
  list("--top-k", dispatch.top_k, "experts for each token");
  command->add_option("--experts", dispatch.experts, "experts of all ranks together")->check(CLI::Range(1, 1 << 16));
  command->add_option("--repeats", dispatch.repeats, "timed repetitions")->check(CLI::Range(1, 100000));
  command->add_option("--skew", dispatch.skew, "how unequal experts are liked: 0 = equally, 1 = e-fold is usual")
      ->check(CLI::Range(0.0, 10.0));
  auto* only = command->add_option("--only", dispatch.only, "one dispatcher, e.g. shared");
  command
      ->add_option_function<std::string>(
          "--payload", [options](const std::string& name) { options->dispatch.payload = payload_of(name); },
          "rows between hosts (moe.dispatch.payload)")
      ->check(CLI::IsMember({"same", "bf16", "fp8"}));
  command
      ->add_option("--exchanges", options->exchanges,
                   "make so many exchanges by --only and print nothing: for counting bytes on links")
      ->needs(only)
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer("Example: mpirun -n 2 conclave bench dispatch --tokens 512,4096 --width 256,512 --top-k 2,8");
  command->callback([options, &run] {
    run = [options] {
      keep_memory();
      return comm::run_world([&](comm::World& world) { return bench_dispatch_in(world, *options); });
    };
  });
}

void add_overlap(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command = bench.add_subcommand("overlap", "how much of the exchanges' time each executor hides");
  add_config_options(*command, options->config);
  command->add_option("--repetitions", options->overlap.repetitions, "of every measurement, in turns")
      ->check(CLI::Range(1, 1000));
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer(
      "Needs ranks whose exchanges take about as long as the computation: two hosts, or a limited link.\n"
      "Example: mpirun -n 2 --host h1,h2 conclave bench overlap configs/presets/small-mixtral.yaml --set "
      "parallel.ep=2");
  command->callback([options, &run] {
    run = [options] {
      keep_memory();
      return comm::run_world([&](comm::World& world) { return bench_overlap_in(world, *options); });
    };
  });
}

void add_scaling(CLI::App& bench, const std::shared_ptr<BenchOptions>& options, std::function<int()>& run) {
  auto* command = bench.add_subcommand(
      "scaling", "the training step of all ranks together beside ranks that train on their own at the same time");
  add_config_options(*command, options->config);
  command->add_option("--repetitions", options->scaling.repetitions, "timed steps of each, in turns")
      ->check(CLI::Range(1, 1000));
  command->add_option("--json", options->json, "write the figures to this file as well");
  command->footer(
      "Example: mpirun -n 2 --host h1,h2 conclave bench scaling configs/bench/overlap.yaml --set "
      "parallel.executor=interleaved");
  command->callback([options, &run] {
    run = [options] {
      keep_memory();
      return comm::run_world([&](comm::World& world) { return bench_scaling_in(world, *options); });
    };
  });
}

}  // namespace

void add_bench_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<BenchOptions>();
  auto* command = app.add_subcommand("bench", "measure the machine and the training step");
  command->require_subcommand(1);
  command->footer("Example: conclave bench step configs/presets/small-mixtral.yaml");
  add_gemm(*command, options, run);
  add_step(*command, options, run);
  add_layer(*command, options, run);
  add_memory(*command, options, run);
  add_dispatch(*command, options, run);
  add_overlap(*command, options, run);
  add_scaling(*command, options, run);
}

}  // namespace conclave::app
