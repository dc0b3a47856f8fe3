// SPDX-License-Identifier: Apache-2.0
// The normal distribution cut off at two deviations, as `model.init: fan_in` draws matrices (Switch, arXiv 2101.03961).
// Numbers that the normal distribution put farther out are drawn again until they are not, and all are multiplied so
// that the variance that is asked for is that of what is drawn: the cut alone would leave 0.7737 of it. (TensorFlow's
// variance_scaling divides by the same deviation, 0.8796.)
#pragma once

#include "nn/parameters.h"

namespace conclave::model {

// The deviation of a standard normal number that is known to lie within ±2: √(1 − 4 φ(2) / (2 Φ(2) − 1)).
constexpr double kTruncatedDeviation = 0.87962566103423978;

// Makes the parameters again that were drawn from normal distributions. A number is drawn by (seed, logical name,
// element, how often already), so every layout has the same.
void truncate(nn::Parameters& parameters, std::span<const nn::ParameterId> ids, uint64_t seed);

}  // namespace conclave::model
