// SPDX-License-Identifier: Apache-2.0
// The products of many experts at once: rows sorted by expert, expert e's rows ending at ends_E[e], which stays on the
// device. Float, double (CPU), bf16. A safe wrapper of at::_grouped_mm where that is one kernel (placement.h), which
// leaves rows after the last end unset, refuses no rows at all and has written garbage for experts without rows;
// elsewhere a loop over experts, for which a CUDA tensor's ends are read (counted) unless the host knows them. N rows,
// E experts, weights [O, I] as in nn/linear.h.
#pragma once

#include "core/tensor.h"
#include "kernels/host_reads.h"

namespace conclave::kernels {

struct RowGroups {
  const Tensor& ends_E;  // int32, not falling, on the rows' device; the last one at most N
  HostReads& reads;
  Tensor host_ends_E = {};  // the same in memory of the host, where somebody has read them already; else undefined
};

// Weights lie evenly in memory: w_EOI may be a view with any stride between experts.

// y[n] = x[n] · W[e]ᵀ; rows after the last end become zero. y has its size and type; another tensor may take its place.
void grouped_forward(const Tensor& x_NI, const Tensor& w_EOI, const RowGroups& groups, Tensor& y_NO);
// dx[n] = dy[n] · W[e], likewise; rows after the last end become zero.
void grouped_backward_input(const Tensor& dy_NO, const Tensor& w_EOI, const RowGroups& groups, Tensor& dx_NI);
// dW[e] = dy[e]ᵀ · x[e] when `fresh`, else dW[e] += it; nothing is zero for experts without rows. dW may be float where
// dy and x are bf16. What lies in rows after the last end does not matter.
void grouped_backward_weight(const Tensor& dy_NO, const Tensor& x_NI, const RowGroups& groups, bool fresh,
                             Tensor& dw_EOI);

// What makes at::_grouped_mm's results safe. Rows after the last end become zero, whatever they hold.
void zero_tail(const Tensor& ends_E, Tensor& rows_ND);
// sums[e] += products[e] for experts that have rows; what stands in the others' products is not read. Sums are float
// where products are bf16 and lie evenly, like weights.
void accumulate_experts(const Tensor& products_EOI, const Tensor& ends_E, Tensor& sums_EOI);

}  // namespace conclave::kernels
