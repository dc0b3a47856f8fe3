// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "kernels/loops.h"

namespace conclave::kernels {
namespace {

std::vector<const LoopSet*> detect() {
  __builtin_cpu_init();
  std::vector<const LoopSet*> sets{&kGenericLoops};
  if (__builtin_cpu_supports("avx2")) sets.push_back(&kAvx2Loops);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    sets.push_back(&kAvx512Loops);
  }
  return sets;
}

}  // namespace

std::span<const LoopSet* const> supported_loops() {
  static const std::vector<const LoopSet*> sets = detect();
  return sets;
}

template <>
const Loops<float>& loops<float>() {
  static const Loops<float>& best = supported_loops().back()->fp32;
  return best;
}

template <>
const Loops<double>& loops<double>() {
  static const Loops<double>& best = supported_loops().back()->fp64;
  return best;
}

}  // namespace conclave::kernels
