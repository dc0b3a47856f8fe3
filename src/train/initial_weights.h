// SPDX-License-Identifier: Apache-2.0
// The weights that a fresh run begins with when `model.init_from` names earlier ones: those of the same model, or of
// dense runs whose FFNs become experts (weight_origins.h). Takes weights, and from a single run the state of routing
// methods that both have; moments, counters and data begin anew. Resuming is checkpoint/resume.h.
#pragma once

#include "checkpoint/resume.h"
#include "core/log.h"
#include "parallel/state_dict.h"
#include "train/run_config.h"

namespace conclave::train {

// Collective. The newest valid checkpoint at `where`, a run directory or a checkpoint, for who takes parts of it by
// checkpoint::read_boxes. Throws NoCheckpointError where there is none.
checkpoint::Resumed open_earlier_run(const std::string& where, const comm::Group& world, Log& log);

// Collective. Fills the weights among `state`, a list of full_state() of a run that was just drawn: what the earlier
// runs lack and a router may draw stays as it is. Throws ConfigError on all ranks, naming what does not fit and the
// remedy, NoCheckpointError where a run has no valid checkpoint; `state` is then undefined.
void take_initial_weights(const RunConfig& config, const comm::Group& world, const parallel::StateDict& state,
                          Log& log);

}  // namespace conclave::train
