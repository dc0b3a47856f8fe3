// SPDX-License-Identifier: Apache-2.0
// The weights of a model as matrix products: what the start-up check of `reduction: canonical` tries out and what
// `conclave bench gemm` times. Each shape once, whatever the number of layers that have it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/row_invariance.h"
#include "model/model_shape.h"

namespace conclave::model {

struct NamedProduct {
  std::string name;
  kernels::ProductShape shape;
  double row_share = 1;  // rows under balanced routing, of the tokens of a micro-batch: k / E for an expert
};

std::vector<NamedProduct> product_shapes(const ModelShape& shape);

}  // namespace conclave::model
