// SPDX-License-Identifier: Apache-2.0
#include "train/evaluator.h"

#include <algorithm>

#include "core/tree_sum.h"
#include "model/device_figures.h"
#include "model/executors/sequential.h"

namespace conclave::train {
namespace {

struct OwnBatches {
  std::vector<double> losses, targets;
};

// What is evaluated: a number of experts that changes by step is that of the last step of training.
struct Evaluated {
  const model::Transformer& model;
  int64_t step;
  const SeeBatch& see;
};

// This rank's batches of a source. On the device path their figures come in one read at the end.
OwnBatches run_batches(const Evaluated& evaluated, const data::ValidationLoader& loader, size_t source,
                       model::RoutingTotals& totals) {
  const model::Transformer& model = evaluated.model;
  OwnBatches own;
  const model::SequentialExecutor executor(model);
  model::DeviceFigures figures(model);
  for (int64_t i = 0; i < loader.batches_per_rank(source); ++i) {
    const Batch batch = loader.batch(source, i);
    nn::Frame frame = model.frame(batch, nullptr, evaluated.step);
    executor.run(frame);
    own.targets.push_back(frame.target_count);
    if (model.device_path() != nullptr) {
      figures.add(frame);
      continue;
    }
    own.losses.push_back(frame.loss_sum);
    totals.add(model, frame);
    if (evaluated.see) evaluated.see(batch, frame);
  }
  if (model.device_path() == nullptr) return own;
  figures.read();
  model.mesh().dp().poll();  // throws where an exchange was broken off: the figures are of rows that nobody sent
  figures.add_to(totals);
  own.losses = figures.losses();
  return own;
}

}  // namespace

std::vector<Evaluation> evaluate(model::Transformer& model, const data::ValidationLoader& loader,
                                 const parallel::Mesh& mesh, int64_t updates, const SeeBatch& see) {
  std::vector<Evaluation> results;
  model.refresh();
  const int64_t ranks = mesh.dp().size();
  for (size_t s = 0; s < loader.sources().size(); ++s) {
    const int64_t count = loader.batches_per_rank(s);
    std::vector<double> all_losses(count * ranks), all_targets(count * ranks);
    model::RoutingTotals totals(model);
    const auto [losses, targets] = run_batches({model, std::max<int64_t>(updates - 1, 0), see}, loader, s, totals);
    mesh.dp().all_gather(std::span<const double>(losses), std::span<double>(all_losses));
    mesh.dp().all_gather(std::span<const double>(targets), std::span<double>(all_targets));
    // Batch i of rank r is number i·ranks + r of the source.
    std::vector<double> ordered;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t r = 0; r < ranks; ++r) ordered.push_back(all_losses[r * count + i]);
    totals.reduce(mesh.dp());
    const double counted = tree_sum(std::span<const double>(all_targets));
    results.push_back({loader.sources()[s].name(),
                       counted > 0 ? tree_sum(std::span<const double>(ordered)) / counted : 0.0,
                       static_cast<int64_t>(counted), totals.layers()});
  }
  return results;
}

}  // namespace conclave::train
