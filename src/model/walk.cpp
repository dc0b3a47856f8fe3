// SPDX-License-Identifier: Apache-2.0
#include "model/walk.h"

#include <utility>

namespace conclave::model {
namespace {

const char* phase_of(Verb verb) {
  switch (verb) {
    case Verb::kForward:
    case Verb::kStartForward:
    case Verb::kFinishForward:
    case Verb::kFree:
      return "forward";
    case Verb::kAgain:
    case Verb::kStartAgain:
    case Verb::kFinishAgain:
      return "forward again";
    case Verb::kWeights:
      return "weight gradients";
    default:
      return "backward";
  }
}

nn::ExchangeStage& exchange(nn::Stage& stage) { return static_cast<nn::ExchangeStage&>(stage); }

}  // namespace

Walk::Walk(const Transformer& model, const Schedule& schedule, nn::Frame& frame, Timeline* timeline,
           const WeightHooks* hooks)
    : model_(model), frame_(frame), timeline_(timeline), hooks_(hooks), operations_(schedule.forward) {
  if (frame.training()) operations_.insert(operations_.end(), schedule.backward.begin(), schedule.backward.end());
}

void Walk::advance() {
  do {
    run(operations_[next_++]);
    frame_.poll();
  } while (!done() && !finishes_exchange(operations_[next_].verb));
}

void Walk::run(const Operation& operation) {
  if (operation.verb == Verb::kFree) {
    return free_after_forward(model_.stages(), model_.stage_memory()[operation.stage], operation.stage, frame_);
  }
  if (operation.verb == Verb::kForward || operation.verb == Verb::kStartForward)
    tell(&WeightHooks::before_forward, operation.stage);
  {
    const auto& name = model_.stages()[operation.stage]->name();
    record(operation);
    const Span span(timeline_, name, phase_of(operation.verb), frame_.batch().index);
    call(operation);
  }
  if (operation.verb == Verb::kWeights) tell(&WeightHooks::written, operation.stage);
}

void Walk::tell(const std::function<void(size_t stage)> WeightHooks::*hook, size_t stage) const {
  if (hooks_ != nullptr && hooks_->*hook) (hooks_->*hook)(stage);
}

// The window of an exchange, from its start to the moment it is waited for.
void Walk::record(const Operation& operation) {
  if (timeline_ == nullptr || !timeline_->on()) return;
  const bool starts = operation.verb == Verb::kStartForward || operation.verb == Verb::kStartAgain ||
                      operation.verb == Verb::kStartBackward;
  if (starts) started_[operation.stage] = timeline_->now();
  const auto started = started_.find(operation.stage);
  if (!finishes_exchange(operation.verb) || started == started_.end()) return;
  timeline_->add({.name = model_.stages()[operation.stage]->name(),
                  .phase = phase_of(operation.verb),
                  .micro_batch = frame_.batch().index,
                  .exchange = true,
                  .begin = started->second,
                  .end = timeline_->now()});
}

void Walk::call(const Operation& operation) {
  nn::Stage& stage = *model_.stages()[operation.stage];
  switch (operation.verb) {
    case Verb::kForward:
      return stage.forward(frame_);
    case Verb::kStartForward:
      return exchange(stage).start_forward(frame_);
    case Verb::kFinishForward:
      return exchange(stage).finish_forward(frame_);
    case Verb::kFree:
      return;
    case Verb::kAgain:
      return stage.forward_again(frame_);
    case Verb::kStartAgain:
      return exchange(stage).start_again(frame_);
    case Verb::kFinishAgain:
      return exchange(stage).finish_again(frame_);
    case Verb::kBackward:
      return stage.backward_input(frame_);
    case Verb::kStartBackward:
      return exchange(stage).start_backward(frame_);
    case Verb::kFinishBackward:
      return exchange(stage).finish_backward(frame_);
    case Verb::kBackwardAside:
      return compute_aside(operation.stage);
    case Verb::kAddAside: {
      const auto inputs = stage.inputs();
      auto kept = aside_.extract(operation.stage);
      for (size_t i = 0; i < inputs.size(); ++i)
        if (kept.mapped()[i].defined()) frame_.add_grad(inputs[i], std::move(kept.mapped()[i]));
      return;
    }
    case Verb::kWeights:
      stage.backward_weight(frame_);
      // Nothing before this stage reads its outputs again.
      for (const nn::Slot slot : stage.outputs()) frame_.grad(slot) = frame_.value(slot) = Tensor();
      return;
  }
}

void Walk::compute_aside(size_t stage) {
  const auto inputs = model_.stages()[stage]->inputs();
  auto& kept = aside_[stage];
  for (const nn::Slot slot : inputs) kept.push_back(std::exchange(frame_.grad(slot), Tensor()));
  model_.stages()[stage]->backward_input(frame_);
  for (size_t i = 0; i < inputs.size(); ++i) std::swap(frame_.grad(inputs[i]), kept[i]);
}

}  // namespace conclave::model
