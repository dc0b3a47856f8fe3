// SPDX-License-Identifier: Apache-2.0
#include "nn/frame.h"

#include "kernels/rows.h"

namespace conclave::nn {

Frame::Frame(const Batch& batch, int slots, int stages, Gradients* gradients)
    : batch_(&batch), gradients_(gradients), values_(slots), grads_(slots), objects_(slots), saved_(stages) {
  for (const float mask : batch.loss_mask) target_count += mask;
}

void Frame::add_grad(Slot slot, Tensor contribution) {
  if (grads_[slot].defined()) {
    kernels::add(grads_[slot], contribution);
  } else {
    grads_[slot] = std::move(contribution);
  }
}

}  // namespace conclave::nn
