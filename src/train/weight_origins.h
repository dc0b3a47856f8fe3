// SPDX-License-Identifier: Apache-2.0
// What a tensor of this run begins as, when it begins with the weights of earlier ones: names and boxes, no bytes.
//
//   same name:            the saved tensor; of several runs their mean
//   expert n of a layer   slice n mod G of the dense FFN of that layer, G = moe.granularity. The experts n, n + 1, ...
//   that was dense:       that hold the G slices are one copy; of several runs each gives as many copies, in order.
//
// Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055), in slices (He et al. 2024, arXiv 2410.07524), and
// experts of several dense runs (Branch-Train-MiX, Sukhbaatar et al. 2024, arXiv 2403.07816).
#pragma once

#include <optional>
#include <string>

#include "checkpoint/box.h"
#include "parallel/state_dict.h"

namespace conclave::train {

struct Origin {
  std::string name;         // of the saved tensor
  checkpoint::Shape shape;  // of all of it
  checkpoint::Box box;      // the part of it
  int first = 0, runs = 1;  // whose mean it is
  double scale = 1;
};

struct Upcycling {
  int64_t copies = 1;       // experts of the layer before granularity
  int64_t granularity = 1;  // G
  int runs = 1;             // that give them; divides the copies
  double weight_sum = 1;    // what the weights of a token add up to
};

// Where the expert tensor `layers.L.moe.experts.N.WHICH.weight` begins; nothing for other names. Down projections are
// multiplied by G / weight_sum: then a token that is sent to all slices of a copy, with equal weights, gets what the
// dense FFN gave.
std::optional<Origin> expert_origin(const parallel::StateEntry& entry, const Upcycling& upcycling);

// The layer in "layers.L.…"; nothing for other names.
std::optional<int64_t> layer_of(const std::string& name);

}  // namespace conclave::train
