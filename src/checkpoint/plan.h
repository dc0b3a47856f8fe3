// SPDX-License-Identifier: Apache-2.0
// Who holds which part of the state: every rank's entries gathered into one table that all ranks share, checked to
// cover each tensor exactly once. Writes nothing.
#pragma once

#include <vector>

#include "checkpoint/box.h"
#include "checkpoint/digest.h"
#include "parallel/state_dict.h"

namespace conclave::checkpoint {

struct PlannedTensor {
  TensorKey key;
  std::string dtype;
  Shape shape;               // global
  std::vector<Box> boxes;    // the parts that are written
  std::vector<int> holders;  // the rank of each
};
using Plan = std::vector<PlannedTensor>;  // ordered by key

// Collective. The same plan on every rank; throws BugError on all if an entry is malformed, ranks disagree about a
// tensor, or the written boxes do not cover it exactly once.
Plan make_plan(const comm::Group& group, const parallel::StateDict& state);

int64_t total_bytes(const Plan& plan);

// Collective. tensor_digest of every planned tensor, on every rank. Each tensor that one rank holds whole costs no
// exchange; the parts of a split one go to the rank with the first.
std::vector<Digest> tensor_digests(const comm::Group& group, const Plan& plan, const parallel::StateDict& state);

// state_digest over the whole plan.
Digest combine(const Plan& plan, const std::vector<Digest>& digests);

TensorKey key_of(const parallel::StateEntry& entry);
Box box_of(const parallel::StateEntry& entry);
bool is_whole(const parallel::StateEntry& entry);

}  // namespace conclave::checkpoint
