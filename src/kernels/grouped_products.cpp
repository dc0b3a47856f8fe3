// SPDX-License-Identifier: Apache-2.0
#include "kernels/grouped_products.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/diff.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "kernels/arguments.h"

namespace conclave::kernels {
namespace {

bool one_kernel(const Tensor& rows) { return rows.is_cuda() && rows.scalar_type() == at::kBFloat16; }

void check_groups(const char* kernel, const Tensor& rows_NK, const Tensor& w_EOI, const RowGroups& groups) {
  check_dimensions(kernel, {rows_NK, "rows_NK"}, 2);
  check_dimensions(kernel, {w_EOI, "w_EOI"}, 3);
  check_sizes(kernel, {groups.ends_E, "ends_E"}, {w_EOI.size(0)});
  check(rows_NK.is_contiguous() && groups.ends_E.scalar_type() == at::kInt, "grouped products: rows lie in one piece");
}

// Rows after the last end, [N, 1].
Tensor tail(const Tensor& rows, const Tensor& ends_E) {
  return at::arange(rows.size(0), ends_E.options()).unsqueeze(1).ge(ends_E.narrow(0, ends_E.size(0) - 1, 1));
}

// Calls body(expert, first row, count).
template <typename Body>
void for_experts(const RowGroups& groups, const Body& body) {
  const Tensor ends_E = groups.ends_E.is_cpu() ? groups.ends_E : groups.reads.read(groups.ends_E);
  int64_t begin = 0, e = 0;
  for (const int32_t end : elements<int32_t>(ends_E)) {
    body(e++, begin, end - begin);
    begin = end;
  }
}

// y[n] = x[n] · m[e], m [E, K, O] of any strides.
void rows_times(const Tensor& x_NK, const Tensor& m_EKO, const RowGroups& groups, Tensor& y_NO) {
  if (x_NK.size(0) == 0) return;
  if (one_kernel(x_NK)) {
    y_NO.copy_(at::_grouped_mm(x_NK, m_EKO, groups.ends_E)).masked_fill_(tail(y_NO, groups.ends_E), 0);
    return;
  }
  int64_t filled = 0;
  for_experts(groups, [&](int64_t e, int64_t begin, int64_t count) {
    filled = begin + count;
    if (count == 0) return;
    Tensor y = y_NO.narrow(0, begin, count);
    at::mm_out(y, x_NK.narrow(0, begin, count), m_EKO[e]);
  });
  y_NO.narrow(0, filled, y_NO.size(0) - filled).zero_();
}

}  // namespace

void grouped_forward(const Tensor& x_NI, const Tensor& w_EOI, const RowGroups& groups, Tensor& y_NO) {
  check_groups("grouped_forward", x_NI, w_EOI, groups);
  check_sizes("grouped_forward", {y_NO, "y_NO"}, {x_NI.size(0), w_EOI.size(1)});
  rows_times(x_NI, w_EOI.transpose(1, 2), groups, y_NO);
}

void grouped_backward_input(const Tensor& dy_NO, const Tensor& w_EOI, const RowGroups& groups, Tensor& dx_NI) {
  check_groups("grouped_backward_input", dy_NO, w_EOI, groups);
  check_sizes("grouped_backward_input", {dx_NI, "dx_NI"}, {dy_NO.size(0), w_EOI.size(2)});
  rows_times(dy_NO, w_EOI, groups, dx_NI);
}

void grouped_backward_weight(const Tensor& dy_NO, const Tensor& x_NI, const RowGroups& groups, bool fresh,
                             Tensor& dw_EOI) {
  check_groups("grouped_backward_weight", dy_NO, dw_EOI, groups);
  check_sizes("grouped_backward_weight", {dw_EOI, "dw_EOI"}, {dw_EOI.size(0), dy_NO.size(1), x_NI.size(1)});
  if (fresh) dw_EOI.zero_();
  if (dy_NO.size(0) == 0) return;
  if (one_kernel(dy_NO)) {
    const Tensor all = at::_grouped_mm(dy_NO.t(), x_NI, groups.ends_E);
    const Tensor none = at::diff(groups.ends_E, 1, 0, at::zeros({1}, groups.ends_E.options())).eq(0);
    dw_EOI.add_(at::where(none.view({-1, 1, 1}), at::zeros({}, all.options()), all));
    return;
  }
  for_experts(groups, [&](int64_t e, int64_t begin, int64_t count) {
    if (count == 0) return;
    dw_EOI[e].add_(at::mm(dy_NO.narrow(0, begin, count).t(), x_NI.narrow(0, begin, count)));
  });
}

}  // namespace conclave::kernels
