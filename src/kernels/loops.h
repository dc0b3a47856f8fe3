// SPDX-License-Identifier: Apache-2.0
// Chooses the innermost loops by what the CPU can do, once. All sets give the same bits: no fused multiply-add, and
// sums run over a fixed number of lanes whatever the width of a register. No threads here.
#pragma once

#include <span>

#include "kernels/loops_table.h"

namespace conclave::kernels {

// The sets this CPU can run, the plainest first, the fastest last. Never empty.
std::span<const LoopSet* const> supported_loops();

// The fastest of them.
template <typename T>
const Loops<T>& loops();

}  // namespace conclave::kernels
