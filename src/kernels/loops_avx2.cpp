// SPDX-License-Identifier: Apache-2.0
// The loops for CPUs with AVX2. Compiled with its own flags, see CMakeLists.txt.
#include "kernels/loops_table.h"

namespace conclave::kernels {
namespace {

constexpr int kVectorBytes = 32;

#include "kernels/loops.inl"

}  // namespace

const LoopSet kAvx2Loops{"avx2", table<float>(), table<double>()};

}  // namespace conclave::kernels
