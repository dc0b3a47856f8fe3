// SPDX-License-Identifier: Apache-2.0
#include "app/bench_step.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "app/gemm_speed.h"
#include "app/opened_run.h"
#include "app/rank_device.h"
#include "app/rank_resources.h"
#include "checkpoint/safetensors.h"
#include "core/random.h"
#include "model/accounting.h"
#include "train/run_state.h"

namespace conclave::app {
namespace {

using Json = nlohmann::json;
using Rows = std::vector<std::vector<int32_t>>;  // [sequences][length]

struct Reference {
  std::filesystem::path weights;
  Rows tokens;
  std::vector<double> losses;
};

Reference read_reference(const std::filesystem::path& file) {
  std::ifstream in(file);
  if (!in)
    throw IoError("cannot read {}\n  Make it with tools/make_golden.py --peer NAME --out DIRECTORY.", file.string());
  try {
    const auto json = Json::parse(in);
    return {file.parent_path() / json.at("weights").get<std::string>(), json.at("tokens").get<Rows>(),
            json.at("ce_loss").at("value").get<std::vector<double>>()};
  } catch (const Json::exception& error) {
    throw DataError("{} is not a file of tools/make_golden.py --peer: {}", file.string(), error.what());
  }
}

Rows random_tokens(const train::RunConfig& config) {
  const Random random(static_cast<uint64_t>(config.train.seed), Purpose::kSample, "bench");
  Rows rows(config.train.global_batch_size, std::vector<int32_t>(config.data.seq_len));
  uint64_t id = 0;
  for (auto& row : rows)
    for (auto& token : row) token = static_cast<int32_t>(random.bits(id++) % config.model.vocab_size);
  return rows;
}

void check_rows(const Rows& rows, const train::RunConfig& config, const std::string& file) {
  const auto count = static_cast<int64_t>(rows.size());
  if (count != config.train.global_batch_size || static_cast<int64_t>(rows.at(0).size()) != config.data.seq_len)
    throw ConfigError(
        "{} has {} sequences of {} tokens, the configuration {} of {}\n  --set train.global_batch_size "
        "and data.seq_len to the file's.",
        file, count, rows.at(0).size(), config.train.global_batch_size, config.data.seq_len);
}

// Every token predicts the next one of its sequence; the last has no target, as in the peers.
Batch micro_batch(const Rows& rows, int64_t index, int64_t size) {
  Batch batch;
  batch.sequences = size;
  batch.length = static_cast<int64_t>(rows[0].size());
  batch.index = index;
  for (int64_t b = index * size; b < (index + 1) * size; ++b) {
    for (int64_t i = 0; i < batch.length; ++i) {
      const bool last = i + 1 == batch.length;
      batch.tokens.push_back(rows[b][i]);
      batch.targets.push_back(last ? 0 : rows[b][i + 1]);
      batch.loss_mask.push_back(last ? 0.0f : 1.0f);
      batch.segment_ids.push_back(0);
      batch.position_ids.push_back(static_cast<int32_t>(i));
      batch.global_token_ids.push_back(b * batch.length + i);
    }
  }
  return batch;
}

std::vector<Batch> rank_batches(const Rows& rows, const train::RunConfig& config, const parallel::Mesh& mesh) {
  const int64_t size = config.train.micro_batch_size;
  const int64_t own = config.train.global_batch_size / size / mesh.dp().size();
  std::vector<Batch> batches;
  for (int64_t i = 0; i < own; ++i) batches.push_back(micro_batch(rows, mesh.dp().rank() * own + i, size));
  return batches;
}

void load_weights(model::Transformer& model, const parallel::Mesh& mesh, const std::filesystem::path& file) {
  const checkpoint::SafetensorsFile weights(file);
  train::HostCopies copies(model);
  for (const auto& entry : train::weight_state(model, mesh, &copies)) {
    if (weights.at(entry.name).shape != entry.global_shape)
      throw DataError("{}: {} has another shape than the model's", file.string(), entry.name);
    weights.read(entry.name, entry.data);
  }
  copies.write_back();
}

// What all ranks reach at the same time, together.
double ceiling(const comm::Group& world, const model::Transformer& model) {
  const model::DevicePath* path = model.device_path();
  const bool on_gpu = path != nullptr && path->device.is_cuda();
  const std::vector<Product> products{ceiling_product(on_gpu)};
  const auto options = on_gpu ? at::TensorOptions(path->device).dtype(path->compute) : at::TensorOptions(at::kFloat);
  world.barrier();
  const std::vector<double> own{measure(products, 0.5, options)[0].best_gflops};
  std::vector<double> all(world.size());
  world.all_gather(std::span<const double>(own), std::span<double>(all));
  double sum = 0;
  for (const double gflops : all) sum += gflops;
  return sum;
}

}  // namespace

std::vector<Batch> made_up_batches(const train::RunConfig& config, const parallel::Mesh& mesh) {
  return rank_batches(random_tokens(config), config, mesh);
}

double seconds_of(const comm::Group& world, const std::function<void()>& body) {
  world.barrier();
  const auto start = std::chrono::steady_clock::now();
  body();
  std::vector<double> seconds{std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
  world.all_reduce(std::span<double>(seconds), comm::Reduce::kMax);
  return seconds[0];
}

StepBench bench_step(comm::World& world, const train::RunConfig& wanted, const StepBenchOptions& options) {
  StepBench bench;
  bench.threads = rank_threads(world.cores());
  at::set_num_threads(bench.threads);
  const auto log = make_log(world.rank());
  const auto device = take_device(wanted, world, *log);
  train::RunConfig config = wanted;
  config.train.device = device.on_gpu ? "cuda" : "cpu";
  const auto group = world.group(backend_for(config, device, world.size()));
  if (world.size() > 1) world.advance_by(config.comm.progress);
  const parallel::Mesh mesh(group, config.parallel);
  model::Transformer model(train::transformer_config(config), mesh);
  try_device_path(model, config, *log);
  Rows rows;
  if (options.reference.empty()) {
    rows = random_tokens(config);
  } else {
    auto reference = read_reference(options.reference);
    check_rows(reference.tokens, config, options.reference);
    if (mesh.ep().size() > 1)
      throw ConfigError("parallel.ep: the weights of --reference are for one rank; set ep to 1");
    load_weights(model, mesh, reference.weights);
    rows = std::move(reference.tokens);
    bench.reference_losses = std::move(reference.losses);
  }
  const auto batches = rank_batches(rows, config, mesh);
  Failpoints none;
  train::TrainStep step(config, mesh, model, none);
  bench.tokens = config.train.global_batch_size * config.data.seq_len;
  bench.flops_per_token = model::count_flops(model.shape(), model::Counter::kExact, config.data.seq_len).training();
  std::vector<double> ceilings{ceiling(group, model)};
  for (int64_t i = 0; i < options.warmup + options.steps; ++i) {
    if (i == options.warmup + options.steps / 2) {
      step.wait_for_weights();
      ceilings.push_back(ceiling(group, model));
    }
    const double seconds = seconds_of(group, [&] { bench.losses.push_back(step.run(i, batches).loss); });
    if (i >= options.warmup) bench.seconds.push_back(seconds);
  }
  step.wait_for_weights();
  ceilings.push_back(ceiling(group, model));
  bench.ceiling_name = ceiling_product(device.on_gpu).name;
  const auto [least, most] = std::minmax_element(ceilings.begin(), ceilings.end());
  bench.ceiling_gflops = *most;
  bench.ceiling_spread = (*most - *least) / *most;
  return bench;
}

namespace {

std::string loss_lines(const StepBench& bench) {
  std::string text = "  losses    ";
  const size_t shown = std::min<size_t>(bench.losses.size(), 5);
  for (size_t i = 0; i < shown; ++i) text += fmt::format(" {:.6f}", bench.losses[i]);
  text += "\n";
  if (bench.reference_losses.empty()) return text;
  text += "  reference ";
  double worst = 0;
  const size_t both = std::min(bench.losses.size(), bench.reference_losses.size());
  for (size_t i = 0; i < both; ++i) {
    text += fmt::format(" {:.6f}", bench.reference_losses[i]);
    worst = std::max(worst, std::abs(bench.losses[i] / bench.reference_losses[i] - 1));
  }
  return text + fmt::format("   largest relative difference {:.1e}\n", worst);
}

}  // namespace

std::string step_report(const StepBench& bench, const train::RunConfig& config, int ranks) {
  auto seconds = bench.seconds;
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2], best = seconds.front();
  const auto tokens = static_cast<double>(bench.tokens);
  const double gflops = static_cast<double>(bench.flops_per_token) * tokens / median / 1e9;
  std::string text =
      fmt::format("{} rank{} x {} thread{}, dp {}, ep {}, {} tokens a step, micro-batches of {} sequences\n", ranks,
                  ranks == 1 ? "" : "s", bench.threads, bench.threads == 1 ? "" : "s", *config.parallel.dp,
                  config.parallel.ep, bench.tokens, config.train.micro_batch_size);
  text += fmt::format("  step       median {:.4f} s, best {:.4f} s of {}\n", median, best, seconds.size());
  text += fmt::format("  speed      {:.0f} tok/s, {:.1f} GFLOP/s at {:.1f} MFLOP a token\n", tokens / median, gflops,
                      static_cast<double>(bench.flops_per_token) / 1e6);
  text += fmt::format(
      "  ceiling    {:.1f} GFLOP/s (mm of {}, spread {:.0f} % over the run): the step reaches {:.1f} %\n",
      bench.ceiling_gflops, bench.ceiling_name, 100 * bench.ceiling_spread, 100 * gflops / bench.ceiling_gflops);
  if (bench.ceiling_spread > 0.1)
    text += "  warning: the ceiling moved by more than 10 %; other work disturbs the figures\n";
  return text + loss_lines(bench);
}

}  // namespace conclave::app
