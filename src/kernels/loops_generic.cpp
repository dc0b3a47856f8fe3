// SPDX-License-Identifier: Apache-2.0
// The loops for every CPU that runs the program at all. Compiled with its own flags, see CMakeLists.txt.
#include "kernels/loops_table.h"

namespace conclave::kernels {
namespace {

constexpr int kVectorBytes = 16;

#include "kernels/loops.inl"

}  // namespace

const LoopSet kGenericLoops{"generic", table<float>(), table<double>()};

}  // namespace conclave::kernels
