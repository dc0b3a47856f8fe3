// SPDX-License-Identifier: Apache-2.0
// One micro-batch in flight: its batch, the values and gradients of the named slots between stages, and what each stage
// saved for its backward. Two frames never share state, so an executor may run one against the other.
#pragma once

#include <any>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/group.h"
#include "core/batch.h"
#include "core/tensor.h"
#include "kernels/host_reads.h"
#include "nn/device_batch.h"
#include "nn/parameters.h"

namespace conclave::nn {

using Slot = int;

// What a frame of the device path has beside its batch. Stages ask for it where they need more than tensors: indices,
// counts, a look from the host.
struct DeviceSide {
  DeviceBatch batch;
  kernels::HostReads* reads;  // outlives the frame
};

// What a frozen teacher makes of the batch of a training frame (Hinton et al. 2015, arXiv 1503.02531), for the loss.
struct TeacherSide {
  Tensor hidden_TD;  // before the teacher's head, of all tokens; times the factor of its logits
  Tensor head_VD;    // this rank's part of the vocabulary
  double weight = 0, temperature = 1;
};

// Names the slots of a model while it is built.
class SlotNames {
 public:
  Slot add(std::string name) {
    names_.push_back(std::move(name));
    return static_cast<Slot>(names_.size()) - 1;
  }
  const std::string& operator[](Slot slot) const { return names_[slot]; }
  int count() const { return static_cast<int>(names_.size()); }

 private:
  std::vector<std::string> names_;
};

class Frame {
 public:
  // `gradients` is null in evaluation: no stage may then save anything for a backward.
  Frame(const Batch& batch, int slots, int stages, Gradients* gradients);
  // Optimizer steps before this one: what randomness is keyed by.
  int64_t step() const { return step_; }
  void set_step(int64_t step) { step_ = step; }

  const Batch& batch() const { return *batch_; }
  bool training() const { return gradients_ != nullptr; }
  Gradients& gradients() { return *gradients_; }

  // Null on the host path.
  const DeviceSide* device() const { return device_ ? &*device_ : nullptr; }
  void set_device(DeviceSide side) { device_ = std::move(side); }

  // Null without distillation.
  const TeacherSide* teacher() const { return teacher_ ? &*teacher_ : nullptr; }
  void set_teacher(TeacherSide side) { teacher_ = std::move(side); }

  Tensor& value(Slot slot) { return values_[slot]; }
  Tensor& grad(Slot slot) { return grads_[slot]; }
  // Adds to the slot's gradient; the first contribution is taken over, not copied.
  void add_grad(Slot slot, Tensor contribution);
  // What is not a tensor: a routing, a dispatch plan.
  std::any& object(Slot slot) { return objects_[slot]; }
  template <typename T>
  T& object_as(Slot slot) {
    return std::any_cast<T&>(objects_[slot]);
  }
  // State of one stage between forward and backward, made on first use.
  template <typename T>
  T& saved(int stage) {
    if (!saved_[stage].has_value()) saved_[stage] = std::make_shared<T>();
    return *std::any_cast<std::shared_ptr<T>&>(saved_[stage]);
  }
  void forget(int stage) { saved_[stage].reset(); }
  // Stages call it between products that take a millisecond or more: what other micro-batches exchange moves on
  // meanwhile.
  void poll() const { link_.poll(); }
  const comm::Group& link() const { return link_; }
  void set_link(const comm::Group& link) { link_ = link; }

  double loss_sum = 0;     // sum over the counted targets, nats
  Tensor device_loss_sum;  // the same on the device path, one fp64 number on the device; loss_sum is 0 then
  // With a teacher: temperature^2 KL(teacher || student), summed in the same way.
  double teacher_loss_sum = 0;
  Tensor device_teacher_loss_sum;
  double target_count = 0;  // targets that count (mask 1)

 private:
  const Batch* batch_;
  Gradients* gradients_;
  int64_t step_ = 0;
  comm::Group link_;
  std::optional<DeviceSide> device_;
  std::optional<TeacherSide> teacher_;
  std::vector<Tensor> values_, grads_;
  std::vector<std::any> objects_, saved_;
};

}  // namespace conclave::nn
