// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>

#include "core/tree_sum.h"
#include "optim/schedule.h"

namespace conclave::train {
namespace {

// ZeRO stage 1: ranks with the same weights own a shard each. Shards are cut between the slices of the gradient norm.
model::Ownership ownership(const RunConfig& config, const parallel::Mesh& mesh, const nn::Parameters& parameters) {
  const auto shards = [&](const comm::Group& copies, bool expert) {
    const int64_t size = parameters.flat_size(expert);
    if (config.parallel.zero == 0) return parallel::Shards(size);
    return parallel::Shards(copies,
                            parallel::cuts_at(model::norm_slice_starts(parameters, expert), size, copies.size()));
  };
  return {.dense = shards(mesh.dp(), false), .expert = shards(mesh.edp(), true)};
}

Tensor own_part(const Tensor& flat, const parallel::Shards& owned) {
  return flat.narrow(0, owned.begin(), owned.count());
}

optim::AdamW make_optimizer(const RunConfig& config, const nn::Parameters& parameters, const parallel::Shards& owned,
                            bool expert) {
  const auto& no_decay = config.optim.no_decay;
  std::vector<optim::Range> ranges;  // from the beginning of what is owned
  for (const auto& p : parameters.all()) {
    if (p.expert != expert) continue;
    const int64_t begin = std::max(p.offset, owned.begin()), end = std::min(p.offset + p.count, owned.end());
    const bool decay = std::find(no_decay.begin(), no_decay.end(), nn::kind_name(p.kind)) == no_decay.end();
    if (begin < end) ranges.push_back({begin - owned.begin(), end - begin, decay});
  }
  return {config.optim, own_part(parameters.flat(expert), owned), ranges};
}

parallel::GradientLayout layout(const parallel::Mesh& mesh, const model::Ownership& owned) {
  return {.dp = mesh.dp(),
          .edp = mesh.edp(),
          .tp = mesh.tp().size(),
          .sources = mesh.ep().size() * mesh.etp().size(),
          .dense = owned.dense,
          .expert = owned.expert};
}

Tensor view(std::span<float> data) { return at::from_blob(data.data(), {static_cast<int64_t>(data.size())}); }

}  // namespace

TrainStep::TrainStep(const RunConfig& config, const parallel::Mesh& mesh, model::Transformer& model,
                     Failpoints& failpoints, StepProbe* probe)
    : config_(config),
      mesh_(mesh),
      model_(model),
      failpoints_(failpoints),
      probe_(probe),
      executor_(model::Executor::make(config.parallel.executor, model, &timeline_)),
      owned_(ownership(config, mesh, model.parameters())),
      reducer_(parallel::make_gradient_reducer<float>(config.parallel.reduction, layout(mesh, owned_))),
      partial_(model.parameters(), mesh),
      norm_(model.parameters(), owned_, mesh),
      dense_(make_optimizer(config, model.parameters(), owned_.dense, false)),
      expert_(make_optimizer(config, model.parameters(), owned_.expert, true)),
      totals_(model) {}

void TrainStep::accumulate(std::span<const Batch> batches) {
  losses_.clear();
  targets_.clear();
  dense_fault_.reset();
  expert_fault_.reset();
  executor_->run({.count = std::ssize(batches),
                  .begin = [&](int64_t i) { return begin(batches[i]); },
                  .end = [&](int64_t i, nn::Frame& frame) { end(frame, i + 1 == std::ssize(batches)); }});
}

nn::Frame TrainStep::begin(const Batch& batch) {
  const bool canonical = config_.parallel.reduction == parallel::Reduction::kCanonical;
  const int64_t ahead = std::ssize(under_way_), sources = canonical ? mesh_.ep().size() * mesh_.etp().size() : 1;
  // Micro-batches that add to one buffer at the same time may not overwrite it.
  const bool first = losses_.empty() && executor_->in_flight() == 1;
  auto& gradients = under_way_.emplace_back();
  gradients.dense = view(reducer_->dense_gradient(ahead));
  for (int64_t s = 0; s < sources; ++s) gradients.experts.push_back(view(reducer_->expert_gradient(s, ahead)));
  gradients.fresh = canonical || first;
  return model_.frame(batch, &gradients, step_number_);
}

void TrainStep::end(nn::Frame& frame, bool last) {
  nn::Gradients& gradients = under_way_.front();
  check(&gradients == &frame.gradients(), "micro-batches end in the order in which they began");
  if (failpoints_.hit("gradient")) gradients.dense[0] = std::nan("");
  losses_.push_back(frame.loss_sum);
  targets_.push_back(frame.target_count);
  totals_.add(model_, frame);
  // `fast` adds up all micro-batches in one buffer, so its last state tells of them all.
  if (last || config_.parallel.reduction == parallel::Reduction::kCanonical) {
    search_non_finite(gradients);
    partial_.sum(gradients.dense);
  }
  reducer_->micro_batch_done();
  under_way_.pop_front();
}

// Before the ranks' gradients are added: afterwards all of them would look guilty.
void TrainStep::search_non_finite(const nn::Gradients& gradients) {
  if (!dense_fault_) dense_fault_ = norm_.non_finite_dense(gradients.dense);
  for (const Tensor& experts : gradients.experts)
    if (!expert_fault_) expert_fault_ = norm_.non_finite_expert(experts);
}

void TrainStep::sum_losses(std::span<const double> own_losses, std::span<const double> own_targets,
                           StepReport& report) const {
  // Micro-batches in their global order, so that the sum's tree is the same for every dp.
  std::vector<double> losses(own_losses.size() * mesh_.dp().size()), targets(losses.size());
  mesh_.dp().all_gather(own_losses, std::span<double>(losses));
  mesh_.dp().all_gather(own_targets, std::span<double>(targets));
  report.targets = tree_sum(std::span<const double>(targets));
  report.loss = report.targets > 0 ? tree_sum(std::span<const double>(losses)) / report.targets : 0.0;
}

Tensor TrainStep::gradient_sum(bool expert) const { return view(expert ? reducer_->expert() : reducer_->dense()); }

std::optional<std::string> TrainStep::why_not(const StepReport& report) const {
  if (report.targets == 0) return "no target of the batch counts";
  if (std::isfinite(report.loss) && std::isfinite(report.grad_norm)) return std::nullopt;
  // A rank's tokens spoil its own dense gradients and the experts of others, so those are asked first. Where every
  // rank's part is finite, the sum has overflowed.
  const auto sum = norm_.non_finite_owned(gradient_sum(false), gradient_sum(true));
  for (const auto& fault : {dense_fault_, expert_fault_, sum}) {
    const auto all = mesh_.world().all_gather_text(fault.value_or(""));
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (!all[rank].empty())
        return fmt::format("gradient of {} is not finite (rank {}), loss {}", all[rank],
                           mesh_.job_rank(static_cast<int64_t>(rank)), report.loss);
    }
  }
  return fmt::format("loss {} with gradient norm {}", report.loss, report.grad_norm);
}

void TrainStep::update(bool expert, const optim::StepSize& size) {
  const Span span(&timeline_, expert ? "update of experts" : "update", "step");
  const parallel::Shards& owned = owned_[expert];
  Tensor& all = model_.parameters().flat(expert);
  Tensor mine = own_part(all, owned);
  optimizer(expert).step(mine, gradient_sum(expert), size);
  owned.gather(std::span<float>(all.mutable_data_ptr<float>(), all.numel()));
}

StepReport TrainStep::run(int64_t step, std::span<const Batch> batches) {
  StepReport report;
  step_number_ = step;
  totals_ = model::RoutingTotals(model_);
  reducer_->begin_step(config_.train.global_batch_size / config_.train.micro_batch_size);
  accumulate(batches);
  {
    const Span span(&timeline_, "gradient reduction", "step");
    reducer_->finish();
  }
  if (probe_ != nullptr) probe_->reduced(gradient_sum(false), gradient_sum(true));
  totals_.reduce(mesh_.dp());
  sum_losses(losses_, targets_, report);
  const double per_target = report.targets > 0 ? 1.0 / report.targets : 0.0;
  const double norm = norm_(gradient_sum(false), gradient_sum(true));
  report.grad_norm = (probe_ != nullptr ? probe_->normed(norm) : norm) * per_target;
  report.lr = optim::learning_rate(config_.optim, config_.train.steps, step);
  report.layers = totals_.layers();
  report.coefficients = model_.balancer().coefficients(model_.state());
  report.skipped = why_not(report);
  if (report.skipped) return report;
  const double limit = config_.optim.grad_clip;
  const double clip = limit > 0 ? std::min(1.0, limit / (report.grad_norm + 1e-6)) : 1.0;
  ++updates_;
  for (const bool expert : {false, true})
    update(expert, {.lr = report.lr, .update = updates_, .grad_scale = per_target * clip});
  totals_.end_step(model_);
  return report;
}

model::TransformerConfig transformer_config(const RunConfig& config) {
  return {.model = config.model,
          .moe = config.moe,
          .memory = config.memory,
          .chunks = config.parallel.executor == parallel::ExecutorType::kChunked ? config.parallel.chunks : 1,
          .document_mask = config.data.document_mask,
          .sequence_parallel = config.parallel.sequence_parallel,
          .seed = static_cast<uint64_t>(config.train.seed),
          .bitwise_dispatch = config.parallel.reduction == parallel::Reduction::kCanonical};
}

}  // namespace conclave::train
