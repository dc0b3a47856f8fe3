// SPDX-License-Identifier: Apache-2.0
// Stands for loops_x86.cpp on other processors: one set of loops, for every CPU.
#include "kernels/loops.h"

namespace conclave::kernels {

std::span<const LoopSet* const> supported_loops() {
  static constexpr const LoopSet* kSets[] = {&kGenericLoops};
  return kSets;
}

template <>
const Loops<float>& loops<float>() {
  return kGenericLoops.fp32;
}

template <>
const Loops<double>& loops<double>() {
  return kGenericLoops.fp64;
}

}  // namespace conclave::kernels
