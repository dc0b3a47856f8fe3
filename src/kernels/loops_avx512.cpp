// SPDX-License-Identifier: Apache-2.0
// The loops for CPUs with AVX-512. Compiled with its own flags, see CMakeLists.txt.
#include "kernels/loops_table.h"

namespace conclave::kernels {
namespace {

constexpr int kVectorBytes = 64;

#include "kernels/loops.inl"

}  // namespace

const LoopSet kAvx512Loops{"avx512", table<float>(), table<double>()};

}  // namespace conclave::kernels
