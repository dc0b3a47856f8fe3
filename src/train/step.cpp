// SPDX-License-Identifier: Apache-2.0
#include "train/step.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/tree_sum.h"
#include "kernels/optimizer.h"
#include "optim/schedule.h"
#include "train/device_gradients.h"

namespace conclave::train {
namespace {

// ZeRO stage 1: ranks with the same weights own a part of each bucket.
model::Ownership ownership(const RunConfig& config, const parallel::GradientLayout& layout) {
  if (config.parallel.zero == 1) return {.dense = layout.dense, .expert = layout.expert};
  return {.dense = parallel::Shards(layout.dense.elements()), .expert = parallel::Shards(layout.expert.elements())};
}

parallel::GradientLayout layout_of(const RunConfig& config, const parallel::Mesh& mesh,
                                   const nn::Parameters& parameters, const model::Buckets& buckets) {
  return {.dense = model::shards_of(buckets, parameters, false, mesh.dp()),
          .expert = model::shards_of(buckets, parameters, true, mesh.edp()),
          .sharded = config.parallel.zero == 1,
          .as_bf16 = config.parallel.gradient_payload == parallel::GradientPayload::kBf16,
          .tp = mesh.tp().size(),
          .sources = mesh.ep().size() * mesh.etp().size(),
          .dense_names = buckets.names(false),
          .expert_names = buckets.names(true)};
}

std::unique_ptr<parallel::GradientReducer<float>> make_reducer(const RunConfig& config, parallel::GradientLayout layout,
                                                               const model::Transformer& model, Timeline& timeline) {
  if (model.device_path() != nullptr)
    return make_device_reducer(model.parameters(), model.mesh(), ownership(config, layout));
  layout.timeline = &timeline;
  return parallel::make_gradient_reducer<float>(config.parallel.reduction, layout);
}

optim::AdamW make_optimizer(const RunConfig& config, const nn::Parameters& parameters, const parallel::Shards& owned,
                            bool expert) {
  const auto& no_decay = config.optim.no_decay;
  std::vector<optim::Range> ranges;
  for (const auto& own : owned.own()) {
    for (const auto& p : parameters.all()) {
      if (p.expert != expert || p.frozen) continue;
      const int64_t begin = std::max(p.offset, own.begin), end = std::min(p.offset + p.count, own.end());
      const bool decay = std::find(no_decay.begin(), no_decay.end(), nn::kind_name(p.kind)) == no_decay.end();
      if (begin < end) ranges.push_back({begin, own.at + begin - own.begin, end - begin, decay, p.lr_scale});
    }
  }
  return {config.optim, parameters.flat(expert), owned.count(), ranges};
}

}  // namespace

TrainStep::TrainStep(const RunConfig& config, const parallel::Mesh& mesh, model::Transformer& model,
                     Failpoints& failpoints, StepProbe* probe)
    : config_(config),
      mesh_(mesh),
      model_(model),
      failpoints_(failpoints),
      probe_(probe),
      executor_(model::Executor::make({config.parallel.executor, config.parallel.micro_batches_in_flight}, model,
                                      &timeline_)),
      unwinding_(std::uncaught_exceptions()),
      buckets_(model::plan_buckets(model.parameters(), model.stages())),
      progress_(buckets_, model.stages().size()),
      owned_(ownership(config, layout_of(config, mesh, model.parameters(), buckets_))),
      reducer_(make_reducer(config, layout_of(config, mesh, model.parameters(), buckets_), model, timeline_)),
      partial_(model.parameters(), mesh),
      norm_(model.parameters(), owned_, mesh),
      dense_(make_optimizer(config, model.parameters(), owned_.dense, false)),
      expert_(make_optimizer(config, model.parameters(), owned_.expert, true)),
      gather_(buckets_, owned_, model.parameters(), model.stages().size(), timeline_),
      totals_(model) {}

TrainStep::~TrainStep() noexcept(false) {
  if (std::uncaught_exceptions() == unwinding_) {
    wait_for_weights();
    return;
  }
  // What other ranks have sent may still arrive in weights and gradients while this rank tells them why it ends. Then
  // the process ends; until then this memory is nobody else's.
  for (const bool expert : {false, true}) static_cast<void>(new Tensor(model_.parameters().flat(expert)));
  static_cast<void>(reducer_.release());
}

Tensor TrainStep::view(std::span<float> data) const {
  const auto device = std::as_const(model_).parameters().flat(false).device();
  const std::vector<int64_t> size{std::ssize(data)};
  // Where the memory is, is said: of an empty buffer ATen could not find it out.
  return at::for_blob(data.data(), size)
      .options(at::TensorOptions().device(device))
      .target_device(device)
      .make_tensor();
}

void TrainStep::accumulate(std::span<const Batch> batches) {
  losses_.clear();
  teacher_losses_.clear();
  targets_.clear();
  dense_fault_.reset();
  expert_fault_.reset();
  if (on_device()) figures_.emplace(model_);
  model_.refresh();
  progress_.begin_step(std::ssize(batches));
  executor_->run({.count = std::ssize(batches),
                  .begin = [&](int64_t i) { return begin(batches[i]); },
                  .end = [&](int64_t i, nn::Frame& frame) { end(frame, i + 1 == std::ssize(batches)); },
                  .hooks = {.before_forward = [&](size_t stage) { gather_.wait_for(stage); },
                            .written = [&](size_t stage) { written(stage); }}});
}

nn::Frame TrainStep::begin(const Batch& batch) {
  const int64_t ahead = std::ssize(under_way_), sources = canonical() ? mesh_.ep().size() * mesh_.etp().size() : 1;
  // Micro-batches that add to one buffer at the same time may not overwrite it.
  const bool first = targets_.empty() && executor_->in_flight() == 1;
  auto& gradients = under_way_.emplace_back().gradients;
  gradients.dense = view(reducer_->dense_gradient(ahead));
  for (int64_t s = 0; s < sources; ++s) gradients.experts.push_back(view(reducer_->expert_gradient(s, ahead)));
  gradients.fresh = canonical() || first;
  nn::Frame frame = model_.frame(batch, &gradients, step_number_);
  if (teacher_ != nullptr) {
    const Span span(&timeline_, "teacher", "forward", batch.index);
    frame.set_teacher(teacher_->look_at(batch));
  }
  return frame;
}

// The sums of what is complete start while backward goes on.
void TrainStep::written(size_t stage) {
  if (!config_.parallel.overlap_grad_reduce) return;
  for (const auto& [expert, index] : progress_.written(stage)) {
    const model::Bucket& bucket = buckets_[expert][index];
    for (UnderWay& micro_batch : under_way_)
      if (canonical() || &micro_batch == &under_way_.back()) look_over(micro_batch, {expert, bucket.begin, bucket.end});
    reducer_->complete(expert, index);
  }
}

void TrainStep::end(nn::Frame& frame, bool last) {
  UnderWay& own = under_way_.front();
  check(&own.gradients == &frame.gradients(), "micro-batches end in the order in which they began");
  if (failpoints_.hit("gradient")) own.gradients.dense[0] = std::nan("");
  targets_.push_back(frame.target_count);
  if (on_device()) {
    figures_->add(frame);
  } else {
    losses_.push_back(frame.loss_sum);
    if (teacher_ != nullptr) teacher_losses_.push_back(frame.teacher_loss_sum);
    totals_.add(model_, frame);
  }
  // `fast` adds up all micro-batches in one buffer, so its last state tells of them all.
  if (last || canonical()) {
    for (const bool expert : {false, true}) look_over(own, {expert, 0, progress_.complete_from(expert)});
    if (!dense_fault_) dense_fault_ = own.dense_fault;
    if (!expert_fault_) expert_fault_ = own.expert_fault;
  }
  reducer_->micro_batch_done();
  under_way_.pop_front();
}

// What is done to a part of a micro-batch's gradients before those of other ranks are added: afterwards all ranks would
// look guilty. Parts come from the end of a buffer to its beginning.
void TrainStep::look_over(UnderWay& micro_batch, const Part& part) const {
  if (on_device()) return;  // a norm that is not finite will tell
  const auto fault_in = [&](const Tensor& all) {
    return norm_.non_finite(part.expert, all.narrow(0, part.begin, part.end - part.begin), part.begin);
  };
  if (!part.expert) {
    if (auto fault = fault_in(micro_batch.gradients.dense)) micro_batch.dense_fault = std::move(fault);
    partial_.sum(micro_batch.gradients.dense, part.begin, part.end);
    return;
  }
  for (const Tensor& experts : micro_batch.gradients.experts) {
    if (auto fault = fault_in(experts)) {
      micro_batch.expert_fault = std::move(fault);
      return;
    }
  }
}

void TrainStep::sum_losses(StepReport& report) const {
  // Micro-batches in their global order, so that the sum's tree is the same for every dp.
  const auto sum = [&](const std::vector<double>& own) {
    std::vector<double> all(own.size() * mesh_.dp().size());
    mesh_.dp().all_gather(std::span<const double>(own), std::span<double>(all));
    return tree_sum(std::span<const double>(all));
  };
  report.targets = sum(targets_);
  const auto mean = [&](const std::vector<double>& own) {
    const double total = sum(own);
    return report.targets > 0 ? total / report.targets : 0.0;
  };
  report.loss = mean(losses_);
  if (teacher_ != nullptr) report.teacher_loss = mean(teacher_losses_);
}

Tensor TrainStep::gradient_sum(bool expert) const { return view(expert ? reducer_->expert() : reducer_->dense()); }

std::optional<std::string> TrainStep::why_not(const StepReport& report) const {
  if (report.targets == 0) return "no target of the batch counts";
  if (std::isfinite(report.loss + report.teacher_loss.value_or(0)) && std::isfinite(report.grad_norm))
    return std::nullopt;
  // A rank's tokens spoil its own dense gradients and the experts of others, so those are asked first. Where every
  // rank's part is finite, the sum has overflowed.
  const auto sum = norm_.non_finite_owned(gradient_sum(false).to(at::kCPU), gradient_sum(true).to(at::kCPU));
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

void TrainStep::update(const optim::StepSize& size) {
  nn::Parameters& parameters = model_.parameters();
  for (const bool expert : {false, true}) {
    const Span span(&timeline_, expert ? "update of experts" : "update", "step");
    optimizer(expert).step(parameters.flat(expert), gradient_sum(expert), size, parameters.copy_of(expert));
  }
  // Of weights that other ranks update, the copies are made when those have come.
  if (config_.parallel.zero == 0) parameters.copies_are_fresh();
  gather_.start();
  // On a device the next step begins with copies of all weights.
  if (config_.parallel.overlap_param_gather && !on_device()) return;
  const Span span(&timeline_, "gather of weights", "step");
  wait_for_weights();
}

void TrainStep::await_weights() {
  wait_for_weights();
  if (!on_device()) return;
  model_.reads().wait_for(model_.parameters().flat(false).device());
  mesh_.world().poll();
}

double TrainStep::settle() {
  if (!on_device()) return norm_(gradient_sum(false), gradient_sum(true));
  const Tensor dense = kernels::device_slice_sums_of_squares(gradient_sum(false)),
               expert = kernels::device_slice_sums_of_squares(gradient_sum(true));
  const std::vector<double> squares = figures_->read({dense, expert});
  mesh_.dp().poll();  // throws where the sums were broken off
  losses_ = figures_->losses();
  teacher_losses_ = figures_->teacher_losses();
  figures_->add_to(totals_);
  const auto all = std::span<const double>(squares);
  return joined_norm({tree_sum(all.first(dense.numel())), tree_sum(all.subspan(dense.numel()))}, mesh_,
                     config_.parallel.zero == 1);
}

StepReport TrainStep::run(int64_t step, std::span<const Batch> batches) {
  check(!config_.train.distill || teacher_ != nullptr, "a run with train.distill has a teacher");
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
  const double norm = settle();
  totals_.reduce(mesh_.dp());
  totals_.reduce_own(mesh_.world());
  sum_losses(report);
  const double per_target = report.targets > 0 ? 1.0 / report.targets : 0.0;
  report.grad_norm = (probe_ != nullptr ? probe_->normed(norm) : norm) * per_target;
  report.lr = optim::learning_rate(config_.optim, config_.train.steps, step);
  report.layers = totals_.layers();
  report.coefficients = model_.balancer().coefficients(model_.state());
  report.skipped = why_not(report);
  if (report.skipped) return report;
  const double limit = config_.optim.grad_clip;
  const double clip = limit > 0 ? std::min(1.0, limit / (report.grad_norm + 1e-6)) : 1.0;
  ++updates_;
  update({.lr = report.lr, .update = updates_, .grad_scale = per_target * clip});
  totals_.end_step(model_);
  return report;
}

namespace {

std::optional<model::DevicePath> device_path(const RunConfig& config) {
  if (!takes_device_path(config)) return std::nullopt;
  const bool gpu = config.train.device == "cuda";
  return model::DevicePath{.device = gpu ? at::kCUDA : at::kCPU,
                           .compute = config.train.precision == "fp32" ? at::kFloat : at::kBFloat16};
}

}  // namespace

model::TransformerConfig transformer_config(const RunConfig& config) {
  return {.model = config.model,
          .moe = config.moe,
          .memory = config.memory,
          .chunks = config.parallel.executor == parallel::ExecutorType::kChunked ? config.parallel.chunks : 1,
          .document_mask = config.data.document_mask,
          .sequence_parallel = config.parallel.sequence_parallel,
          .seed = static_cast<uint64_t>(config.train.seed),
          .bitwise_dispatch = config.parallel.reduction == parallel::Reduction::kCanonical,
          .device = device_path(config)};
}

}  // namespace conclave::train
