// SPDX-License-Identifier: Apache-2.0
#include "kernels/grouped_products.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/mm.h>

#include "kernels/arguments.h"
#include "kernels/on_device.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

void check_groups(const char* kernel, const Tensor& rows_NK, const Tensor& w_EOI, const RowGroups& groups) {
  check_dimensions(kernel, {rows_NK, "rows_NK"}, 2);
  check_dimensions(kernel, {w_EOI, "w_EOI"}, 3);
  check_sizes(kernel, {groups.ends_E, "ends_E"}, {w_EOI.size(0)});
  check(rows_NK.is_contiguous() && groups.ends_E.scalar_type() == at::kInt, "grouped products: rows lie in one piece");
}

// Calls body(expert, first row, count).
template <typename Body>
void for_experts(const RowGroups& groups, const Body& body) {
  const bool known = groups.host_ends_E.defined();
  const Tensor& nearest = known ? groups.host_ends_E : groups.ends_E;
  const Tensor ends_E = nearest.is_cpu() ? nearest : groups.reads.read(nearest);
  int64_t begin = 0, e = 0;
  for (const int32_t end : elements<int32_t>(ends_E)) {
    body(e++, begin, end - begin);
    begin = end;
  }
}

// y[n] = x[n] · m[e], m [E, K, O] of any strides. ATen's kernel has no form that writes into a given tensor, so its own
// takes the place of y.
void rows_times(const Tensor& x_NK, const Tensor& m_EKO, const RowGroups& groups, Tensor& y_NO) {
  if (x_NK.size(0) == 0) return;
  if (has_grouped_product(x_NK)) {
    y_NO = at::_grouped_mm(x_NK, m_EKO, groups.ends_E).contiguous();
    zero_tail(groups.ends_E, y_NO);
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
  if (has_grouped_product(dy_NO)) {
    accumulate_experts(at::_grouped_mm(dy_NO.t(), x_NI, groups.ends_E).contiguous(), groups.ends_E, dw_EOI);
    return;
  }
  for_experts(groups, [&](int64_t e, int64_t begin, int64_t count) {
    if (count == 0) return;
    dw_EOI[e].add_(at::mm(dy_NO.narrow(0, begin, count).t(), x_NI.narrow(0, begin, count)));
  });
}

void zero_tail(const Tensor& ends_E, Tensor& rows_ND) {
  if (on_device(rows_ND)) return zero_tail_on_device(ends_E, rows_ND);
  const int64_t end = elements<int32_t>(ends_E).back();
  if (end < rows_ND.size(0)) rows_ND.narrow(0, end, rows_ND.size(0) - end).zero_();
}

void accumulate_experts(const Tensor& products_EOI, const Tensor& ends_E, Tensor& sums_EOI) {
  if (on_device(products_EOI)) return accumulate_experts_on_device(products_EOI, ends_E, sums_EOI);
  int32_t begin = 0;
  for (int64_t e = 0; e < products_EOI.size(0); ++e) {
    const int32_t end = elements<int32_t>(ends_E)[e];
    if (end > begin) sums_EOI[e].add_(products_EOI[e]);
    begin = end;
  }
}

}  // namespace conclave::kernels
