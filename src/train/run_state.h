// SPDX-License-Identifier: Apache-2.0
// Everything a bitwise resume needs, described for the checkpoint store: weights, moments and methods' state as
// tensors, counters and windows as JSON. Batches and randomness are functions of the step and need nothing. The fp32
// weights are their own masters.
#pragma once

#include "parallel/mesh.h"
#include "parallel/state_dict.h"
#include "train/host_copies.h"
#include "train/step.h"

namespace conclave::train {

// Names of roles in a checkpoint.
inline constexpr const char* kParamRole = "param";
inline constexpr const char* kFirstMomentRole = "adam_m";
inline constexpr const char* kSecondMomentRole = "adam_v";
inline constexpr const char* kBufferRole = "buffer";
// Not in checkpoints: the gradients of the last step.
inline constexpr const char* kGradientRole = "gradient";

// A model of the device path is described through `copies`, which outlive the description; without them its tensors
// must lie on the host.

// The weights alone, for commands that only read.
parallel::StateDict weight_state(model::Transformer& model, const parallel::Mesh& mesh, HostCopies* copies = nullptr);
// What the methods of routing and balancing carry from step to step.
parallel::StateDict method_state(model::Transformer& model, const parallel::Mesh& mesh);
// All of it. Collective.
parallel::StateDict full_state(model::Transformer& model, TrainStep& step, const parallel::Mesh& mesh,
                               HostCopies* copies = nullptr);
// The gradients of the last step, summed over its targets and neither divided nor clipped.
parallel::StateDict gradient_state(const TrainStep& step, const model::Transformer& model, const parallel::Mesh& mesh);

}  // namespace conclave::train
