// SPDX-License-Identifier: Apache-2.0
#include "app/bench_layer.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>

#include "app/gemm_speed.h"
#include "app/measured_layer.h"
#include "app/rank_device.h"
#include "app/rank_resources.h"
#include "core/error.h"
#include "kernels/rows.h"

namespace conclave::app {
namespace {

using Clock = std::chrono::steady_clock;

// Something to be timed: `run` starts it, and on a GPU does not wait for it.
struct Subject {
  TimedWork* work;
  std::function<void()> run;
  int64_t runs = 1;  // in a repetition
};

// Seconds of one run. The device is idle before and after, so that nothing else is counted and nothing left out.
double seconds_of_runs(const Subject& subject, at::Device device) {
  const kernels::HostReads reads;
  reads.wait_for(device);
  const auto start = Clock::now();
  for (int64_t i = 0; i < subject.runs; ++i) subject.run();
  reads.wait_for(device);
  return std::chrono::duration<double>(Clock::now() - start).count() / static_cast<double>(subject.runs);
}

void time_in_turns(std::vector<Subject> subjects, at::Device device, const LayerBenchOptions& options) {
  for (Subject& subject : subjects) {
    seconds_of_runs(subject, device);  // what is made on first use
    const double once = seconds_of_runs(subject, device);
    subject.runs = std::clamp<int64_t>(std::llround(std::ceil(options.seconds / once)), 1, 1000);
  }
  for (int64_t i = 0; i < options.repetitions; ++i)
    for (const Subject& subject : subjects) subject.work->seconds.push_back(seconds_of_runs(subject, device));
}

// The products of a dense SwiGLU layer as wide as what a token passes here, forward and backward.
std::vector<Product> dense_products(const MeasuredLayer& layer) {
  const model::LayerShape& shape = layer.shape();
  const int64_t width = shape.top_k * shape.expert_width + shape.shared_width;
  std::vector<Product> products;
  for (const Pass pass : {Pass::kForward, Pass::kInputGradient, Pass::kWeightGradient}) {
    products.push_back({"gate and up", layer.tokens(), layer.width(), 2 * width, pass});
    products.push_back({"down", layer.tokens(), width, layer.width(), pass});
  }
  return products;
}

std::function<void()> all_of(const std::vector<Product>& products, const at::TensorOptions& options) {
  std::vector<std::function<void()>> calls;
  for (const Product& product : products) calls.push_back(product_call(product, options));
  return [calls] {
    for (const auto& call : calls) call();
  };
}

// Rows to the order of the experts and back, three ways; all bytes that each must read and write.
class RowMovers {
 public:
  explicit RowMovers(MeasuredLayer& layer)
      : x_TD_(layer.input()),
        map_(kernels::slot_map(layer.routed().ids_TK, layer.routed().selected_E)),
        rows_ND_(at::empty({map_.rows_N.numel(), x_TD_.size(1)}, x_TD_.options())),
        other_ND_(at::zeros_like(rows_ND_)),
        y_TD_(at::zeros_like(x_TD_)) {}

  std::vector<Subject> subjects(RowMoves& moves) {
    const auto row = static_cast<double>(x_TD_.size(1) * x_TD_.element_size());
    const double rows = static_cast<double>(rows_ND_.size(0)), tokens = static_cast<double>(x_TD_.size(0));
    moves.own = {.name = "gather + aggregate", .amount = (3 * rows + tokens) * row, .seconds = {}};
    moves.copy = {.name = "copy of the rows", .amount = 2 * rows * row, .seconds = {}};
    moves.operators = {.name = "index_select + index_add_", .amount = moves.own.amount, .seconds = {}};
    return {{&moves.own, [this] { own(); }}, {&moves.copy, [this] { copy(); }}, {&moves.operators, [this] {
                                                                                   operators();
                                                                                 }}};
  }

 private:
  void own() {
    kernels::gather_rows(x_TD_, map_.rows_N, rows_ND_);
    kernels::aggregate(rows_ND_, map_.slots_TK, y_TD_);
  }
  void copy() { other_ND_.copy_(rows_ND_); }
  // As peers do it: without the sort that a repeatable index_add_ would take.
  void operators() {
    auto& global = at::globalContext();
    const bool repeatable = global.deterministicAlgorithms();
    global.setDeterministicAlgorithms(false, false);
    other_ND_ = at::index_select(x_TD_, 0, map_.rows_N);
    y_TD_ = at::zeros_like(x_TD_).index_add_(0, map_.rows_N, other_ND_);
    global.setDeterministicAlgorithms(repeatable, false);
  }

  Tensor x_TD_;
  kernels::SlotMap map_;
  Tensor rows_ND_, other_ND_, y_TD_;
};

void describe(MeasuredLayer& layer, LayerBench& bench) {
  const model::LayerShape& shape = layer.shape();
  bench.device = layer.options().device().is_cuda() ? "cuda" : "cpu";
  bench.precision = layer.options().dtype() == at::kBFloat16 ? "bf16" : "fp32";
  bench.threads = at::get_num_threads();
  bench.tokens = layer.tokens(), bench.width = layer.width();
  bench.experts = shape.num_experts, bench.top_k = shape.top_k, bench.expert_width = shape.expert_width;
  const auto rows = layer.expert_rows();
  const auto all = static_cast<double>(std::accumulate(rows.begin(), rows.end(), int64_t{0}));
  if (all > 0)
    bench.busiest = static_cast<double>(*std::max_element(rows.begin(), rows.end()) * std::ssize(rows)) / all;
}

}  // namespace

double TimedWork::median() const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  return sorted.at(sorted.size() / 2);
}

double TimedWork::best() const { return *std::min_element(seconds.begin(), seconds.end()); }

double LayerBench::ceiling_spread() const {
  return 1 - ceiling.best() / *std::max_element(ceiling.seconds.begin(), ceiling.seconds.end());
}

LayerBench measure_layer(const train::RunConfig& config, const LayerBenchOptions& options) {
  LayerBench bench;
  MeasuredLayer layer(config);
  const at::TensorOptions rows = layer.options();
  const model::LayerShape& shape = layer.shape();
  const int64_t widths = shape.top_k * shape.expert_width + shape.shared_width;
  bench.least_bytes =
      layer.tokens() * (layer.width() + 2 * widths) * static_cast<int64_t>(layer.input().element_size());
  layer.forward();  // what is made on first use is no activation
  layer.backward();
  bench.held_bytes = layer.held_bytes();
  layer.forward();
  describe(layer, bench);

  const double flops = layer.forward_flops();
  const std::vector<Product> products = dense_products(layer);
  const Product most = ceiling_product(rows.device().is_cuda());
  const double dense =
      std::accumulate(products.begin(), products.end(), 0.0, [](double sum, const auto& p) { return sum + p.flops(); });
  bench.forward = {.name = "forward", .amount = flops, .seconds = {}};
  bench.training = {.name = "forward + backward", .amount = 3 * flops, .seconds = {}};
  bench.dense = {.name = "dense products", .amount = dense, .seconds = {}};
  bench.ceiling = {.name = "ceiling: mm of " + most.name, .amount = most.flops(), .seconds = {}};
  std::vector<Subject> subjects{{&bench.ceiling, product_call(most, rows)},
                                {&bench.forward, [&] { layer.forward(); }},
                                {&bench.training,
                                 [&] {
                                   layer.forward();
                                   layer.backward();
                                 }},
                                {&bench.dense, all_of(products, rows)}};
  std::optional<RowMovers> movers;
  if (layer.model().device_path() != nullptr)
    for (auto& subject : movers.emplace(layer).subjects(bench.moves.emplace())) subjects.push_back(std::move(subject));
  time_in_turns(std::move(subjects), rows.device(), options);
  return bench;
}

LayerBench bench_layer(comm::World& world, const train::RunConfig& wanted, const LayerBenchOptions& options) {
  if (world.size() > 1)
    throw ConfigError(
        "bench layer measures the layer of one rank, and there are {}\n  Start it without mpirun; bench step, dispatch "
        "and overlap measure ranks together.",
        world.size());
  at::set_num_threads(rank_threads(world.cores()));
  const auto log = make_log(world.rank());
  train::RunConfig config = wanted;
  config.train.device = take_device(wanted, world, *log).on_gpu ? "cuda" : "cpu";
  return measure_layer(config, options);
}

}  // namespace conclave::app
