// SPDX-License-Identifier: Apache-2.0
#include "app/gemm_speed.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>

#include <algorithm>

#include "core/error.h"
#include "core/tensor.h"
#include "kernels/host_reads.h"

namespace conclave::app {
namespace {

struct Operands {
  Tensor left, right, out;
};

// Laid out as in training: activations [rows, depth], weights [columns, depth], gradients [rows, columns].
Operands operands(const Product& p, const at::TensorOptions& o) {
  if (p.pass == Pass::kForward)
    return {at::randn({p.rows, p.depth}, o), at::randn({p.columns, p.depth}, o).t(), at::empty({p.rows, p.columns}, o)};
  if (p.pass == Pass::kInputGradient)
    return {at::randn({p.rows, p.columns}, o), at::randn({p.columns, p.depth}, o), at::empty({p.rows, p.depth}, o)};
  return {at::randn({p.rows, p.columns}, o).t(), at::randn({p.rows, p.depth}, o), at::empty({p.columns, p.depth}, o)};
}

void multiply(Operands& operands) {
  at::mm_out(operands.out, operands.left, operands.right);
  kernels::HostReads().wait_for(operands.out.device());
}

// Seconds of one product, of each repetition.
class Seconds : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    std::vector<double> seconds;
    for (const Run& run : runs) {
      check(!run.error_occurred, run.error_message.c_str());
      if (run.run_type == Run::RT_Iteration) seconds.push_back(run.GetAdjustedRealTime());
    }
    if (!seconds.empty()) all_.push_back(seconds);
  }
  const std::vector<std::vector<double>>& all() const { return all_; }

 private:
  std::vector<std::vector<double>> all_;
};

}  // namespace

std::vector<ProductSpeed> measure(std::span<const Product> products, double seconds, const at::TensorOptions& options) {
  constexpr int kRepetitions = 7;
  for (const Product& product : products) {
    benchmark::RegisterBenchmark(product.name.c_str(),
                                 [operands = operands(product, options)](benchmark::State& state) mutable {
                                   for (auto _ : state) multiply(operands);
                                 })
        ->UseRealTime()
        ->Unit(benchmark::kSecond)
        ->Repetitions(kRepetitions)
        ->MinTime(seconds / kRepetitions);
  }
  Seconds reporter;
  benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::ClearRegisteredBenchmarks();
  check(reporter.all().size() == products.size(), "a product was not measured");
  std::vector<ProductSpeed> speeds;
  for (size_t i = 0; i < products.size(); ++i) {
    auto times = reporter.all()[i];
    std::sort(times.begin(), times.end());
    const double giga = products[i].flops() / 1e9;
    speeds.push_back({giga / times.front(), giga / times[times.size() / 2]});
  }
  return speeds;
}

std::function<void()> product_call(const Product& product, const at::TensorOptions& options) {
  return [all = operands(product, options)]() mutable { at::mm_out(all.out, all.left, all.right); };
}

Product ceiling_product(bool on_gpu) {
  if (on_gpu) return {"8192 x 8192 x 8192", 8192, 8192, 8192, Pass::kForward};
  return {"2048 x 2048 x 2048", 2048, 2048, 2048, Pass::kForward};
}

}  // namespace conclave::app
