// SPDX-License-Identifier: Apache-2.0
// The loops for every CPU that runs the program at all.
#include "kernels/loops.h"

namespace conclave::kernels {
namespace {

constexpr int kVectorBytes = 16;

#include "kernels/loops.inl"

constexpr Loops<float> kFloat = table<float>("generic");
constexpr Loops<double> kDouble = table<double>("generic");

}  // namespace

template <>
const Loops<float>& loops<float>() {
  return kFloat;
}

template <>
const Loops<double>& loops<double>() {
  return kDouble;
}

}  // namespace conclave::kernels
