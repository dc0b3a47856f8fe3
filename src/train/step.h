// SPDX-License-Identifier: Apache-2.0
// One optimizer step: *what* happens to the model. When steps, evaluations and saves happen is the trainer's business.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>

#include "core/failpoints.h"
#include "model/device_figures.h"
#include "model/executor.h"
#include "model/gradient_norm.h"
#include "model/partial_gradients.h"
#include "model/routing_totals.h"
#include "optim/adamw.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"
#include "train/run_config.h"
#include "train/teacher.h"
#include "train/weight_gather.h"

namespace conclave::train {

struct StepReport {
  double loss = 0;     // cross entropy per counted target of the global batch, nats
  double targets = 0;  // that counted
  // temperature^2 KL(teacher || student), counted in the same way; none without a teacher. The step follows the
  // gradient of (1 - weight) loss + weight · this.
  std::optional<double> teacher_loss = {};
  double grad_norm = 0;  // before clipping
  double lr = 0;
  std::optional<std::string> skipped;  // why the update was left out; equal on all ranks
  std::vector<moe::StepTotals> layers;
  // Of each auxiliary loss that moves its coefficient by itself: what this step used.
  std::vector<std::optional<double>> coefficients;
};

// Stands between the phases of a step and may change what it is shown. A training run has none; `conclave verify` has
// one that does damage on purpose, to prove that damage is found.
class StepProbe {
 public:
  virtual ~StepProbe() = default;
  // The gradients are summed over ranks: this rank's copies, not yet divided by the targets.
  virtual void reduced(Tensor /*dense*/, Tensor /*expert*/) {}
  // Their norm, the same way. Returns the one to go on with.
  virtual double normed(double norm) { return norm; }
};

class TrainStep {
 public:
  // All outlive the step. Collective.
  TrainStep(const RunConfig& config, const parallel::Mesh& mesh, model::Transformer& model, Failpoints& failpoints,
            StepProbe* probe = nullptr);
  // Waits for the weights that are under way, unless an exception unwinds: peers still take this rank's.
  ~TrainStep() noexcept(false);
  TrainStep(const TrainStep&) = delete;
  TrainStep& operator=(const TrainStep&) = delete;
  // The steps from here on also learn from it. It outlives the step; null = no longer.
  void learn_from(const Teacher* teacher) { teacher_ = teacher; }
  const Teacher* teacher() const { return teacher_; }
  // `batches` are this rank's micro-batches of the step, in order. Collective; the report is equal on all ranks. With
  // parallel.overlap_param_gather the new weights of other owners may still be under way afterwards: the next run waits
  // for them where they are used, everybody else calls wait_for_weights() first.
  StepReport run(int64_t step, std::span<const Batch> batches);
  // Collective.
  void wait_for_weights() { gather_.finish(); }
  // The same, and on a device waits until they are there, so that a gather that was broken off is met here.
  void await_weights();

  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }
  // What this rank updates and holds the moments of.
  const parallel::Shards& owned(bool expert) const { return owned_[expert]; }
  optim::AdamW& optimizer(bool expert) { return expert ? expert_ : dense_; }
  // The gradients of the last step, to look at: summed over its targets and not yet divided or clipped, of what this
  // rank owns.
  Tensor gradient_sum(bool expert) const;
  // Of what the steps do; off unless somebody starts it.
  Timeline& timeline() { return timeline_; }

 private:
  // Of a micro-batch that has begun and not ended: where its gradients go, and the first tensors of this rank where
  // they are not finite.
  struct UnderWay {
    nn::Gradients gradients;
    std::optional<std::string> dense_fault, expert_fault;
  };
  struct Part {
    bool expert;
    int64_t begin, end;
  };

  bool on_device() const { return model_.device_path() != nullptr; }
  Tensor view(std::span<float> data) const;
  // The norm of the summed gradient, before the division. On the device path with it come the figures of all
  // micro-batches: the one look of a step.
  double settle();
  void accumulate(std::span<const Batch> batches);
  nn::Frame begin(const Batch& batch);
  void written(size_t stage);
  void end(nn::Frame& frame, bool last);
  void look_over(UnderWay& micro_batch, const Part& part) const;
  bool canonical() const { return config_.parallel.reduction == parallel::Reduction::kCanonical; }
  void sum_losses(StepReport& report) const;
  std::optional<std::string> why_not(const StepReport& report) const;
  void update(const optim::StepSize& size);

  RunConfig config_;
  const parallel::Mesh& mesh_;
  model::Transformer& model_;
  Failpoints& failpoints_;
  StepProbe* probe_;
  const Teacher* teacher_ = nullptr;
  Timeline timeline_;
  std::unique_ptr<model::Executor> executor_;
  int unwinding_;
  model::Buckets buckets_;
  model::BucketProgress progress_;
  model::Ownership owned_;
  std::unique_ptr<parallel::GradientReducer<float>> reducer_;
  model::PartialGradients partial_;
  model::GradientNorm norm_;
  optim::AdamW dense_, expert_;
  WeightGather gather_;
  int64_t updates_ = 0;
  std::deque<UnderWay> under_way_;
  std::vector<double> losses_, teacher_losses_, targets_;  // of this rank's micro-batches
  // Of the first micro-batch that has any.
  std::optional<std::string> dense_fault_, expert_fault_;
  model::RoutingTotals totals_;
  std::optional<model::DeviceFigures> figures_;  // of the device path, in the present step
  int64_t step_number_ = 0;                      // optimizer steps before the present one
};

model::TransformerConfig transformer_config(const RunConfig& config);

}  // namespace conclave::train
