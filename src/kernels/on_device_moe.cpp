// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/slots.h"
#include "kernels/on_device.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

cuda::RouteShape shape_of(const Tensor& logits_TE, const Tensor& segment_ids_BS, const RouteRule& rule) {
  check(logits_TE.size(1) <= cuda::kMostExperts, "route: the device's kernel holds at most 512 experts");
  check(rule.group_best <= 2, "route: a group is worth its best one or two scores");
  cuda::RouteShape shape{};
  shape.sequences = segment_ids_BS.size(0), shape.length = segment_ids_BS.size(1);
  shape.experts = static_cast<int32_t>(logits_TE.size(1)), shape.top_k = static_cast<int32_t>(rule.top_k);
  shape.groups = static_cast<int32_t>(rule.groups), shape.kept_groups = static_cast<int32_t>(rule.kept_groups);
  shape.group_best = static_cast<int32_t>(rule.group_best);
  shape.sigmoid = rule.sigmoid, shape.over_picks = rule.over_picks, shape.normalise = rule.normalise;
  shape.scale = static_cast<float>(rule.scale);
  return shape;
}

void check_shared_memory(const cuda::RouteShape& shape) {
  const int64_t bytes = cuda::route_shared_bytes(shape);
  if (bytes <= cuda::kMostSharedBytes) return;
  throw ConfigError(
      "moe.top_k: {} of {} experts in {} groups of which {} are kept take {} bytes of a GPU's shared memory in the "
      "router's kernel, which has {}\n  Take fewer of each, or train.device: cpu.",
      shape.top_k, shape.experts, shape.groups, shape.kept_groups, bytes, cuda::kMostSharedBytes);
}

Routed empty_routed(const Tensor& logits_TE, bool biased, int64_t sequences, int64_t k) {
  const int64_t T = logits_TE.size(0), E = logits_TE.size(1);
  const auto real = logits_TE.options(), index = real.dtype(at::kInt), exact = real.dtype(at::kDouble);
  Routed r{.logits_TE = logits_TE, .probs_TE = at::empty_like(logits_TE), .lse_T = at::empty({T}, real)};
  r.ids_TK = at::empty({T, k}, index);
  r.counted_TK = biased ? at::empty({T, k}, index) : r.ids_TK;
  r.raw_TK = at::empty({T, k}, real);
  r.weights_TK = at::empty({T, k}, real);
  r.chosen_BE = at::empty({sequences, E}, index);
  r.first_BE = at::empty({sequences, E}, index);
  r.selected_E = at::empty({E}, index);
  r.affinity_BE = at::empty({sequences, E}, exact);
  r.sums_2 = at::empty({2}, exact);
  return r;
}

}  // namespace

Routed route_on_device(const Tensor& logits_TE, const Tensor& bias_E, const Tensor& segment_ids_BS,
                       const RouteRule& rule) {
  check_beside("route", logits_TE, at::kFloat, {{logits_TE, "logits_TE"}});
  check_beside("route", logits_TE, at::kInt, {{segment_ids_BS, "segment_ids_BS"}});
  if (bias_E.defined()) check_beside("route", logits_TE, at::kFloat, {{bias_E, "bias_E"}});
  cuda::Route a{};
  a.shape = shape_of(logits_TE, segment_ids_BS, rule);
  check_shared_memory(a.shape);
  Routed r = empty_routed(logits_TE, bias_E.defined(), a.shape.sequences, rule.top_k);
  const int64_t chunks = cuda::chunks_of(a.shape), E = logits_TE.size(1);
  Tensor counts = at::empty({chunks * 3 * E}, r.ids_TK.options()),
         sums = at::empty({chunks * (E + 2)}, r.sums_2.options());
  a.logits_TE = logits_TE.const_data_ptr<float>();
  a.bias_E = bias_E.defined() ? bias_E.const_data_ptr<float>() : nullptr;
  a.segment_ids_T = segment_ids_BS.const_data_ptr<int32_t>();
  a.probs_TE = r.probs_TE.mutable_data_ptr<float>();
  a.lse_T = r.lse_T.mutable_data_ptr<float>();
  a.raw_TK = r.raw_TK.mutable_data_ptr<float>();
  a.weights_TK = r.weights_TK.mutable_data_ptr<float>();
  a.ids_TK = r.ids_TK.mutable_data_ptr<int32_t>();
  a.counted_TK = bias_E.defined() ? r.counted_TK.mutable_data_ptr<int32_t>() : nullptr;
  a.chosen_BE = r.chosen_BE.mutable_data_ptr<int32_t>();
  a.first_BE = r.first_BE.mutable_data_ptr<int32_t>();
  a.selected_E = r.selected_E.mutable_data_ptr<int32_t>();
  a.affinity_BE = r.affinity_BE.mutable_data_ptr<double>();
  a.sums_2 = r.sums_2.mutable_data_ptr<double>();
  a.chunk_counts = counts.mutable_data_ptr<int32_t>();
  a.chunk_sums = sums.mutable_data_ptr<double>();
  cuda::route(a, stream_of(logits_TE));
  return r;
}

Tensor route_backward_on_device(const Routed& routed, const Tensor& segment_ids_BS, const RouteGradients& gradients,
                                const RouteRule& rule) {
  const char* name = "route_backward";
  const Tensor& logits = routed.logits_TE;
  check_beside(
      name, logits, at::kFloat,
      {{logits, "logits_TE"}, {routed.probs_TE, "probs_TE"}, {routed.lse_T, "lse_T"}, {routed.raw_TK, "raw_TK"}});
  check_beside(name, logits, at::kFloat, {{routed.weights_TK, "weights_TK"}});
  check_beside(name, logits, at::kInt, {{routed.ids_TK, "ids_TK"}, {segment_ids_BS, "segment_ids_BS"}});
  Tensor dlogits = at::empty_like(logits);
  cuda::RouteBackward a{};
  a.shape = shape_of(logits, segment_ids_BS, rule);
  a.logits_TE = logits.const_data_ptr<float>();
  a.probs_TE = routed.probs_TE.const_data_ptr<float>();
  a.lse_T = routed.lse_T.const_data_ptr<float>();
  a.raw_TK = routed.raw_TK.const_data_ptr<float>();
  a.weights_TK = routed.weights_TK.const_data_ptr<float>();
  a.ids_TK = routed.ids_TK.const_data_ptr<int32_t>();
  a.segment_ids_T = segment_ids_BS.const_data_ptr<int32_t>();
  if (gradients.weights_TK.defined()) {
    check_beside(name, logits, at::kFloat, {{gradients.weights_TK, "weights_TK"}});
    a.dweights_TK = gradients.weights_TK.const_data_ptr<float>();
  }
  if (gradients.affinity_BE.defined()) {
    check_beside(name, logits, at::kDouble, {{gradients.affinity_BE, "affinity_BE"}});
    a.affinity_gradient_BE = gradients.affinity_BE.const_data_ptr<double>();
  }
  a.z_scale = gradients.z_scale;
  a.dlogits_TE = dlogits.mutable_data_ptr<float>();
  cuda::route_backward(a, stream_of(logits));
  return dlogits;
}

SlotMap slot_map_on_device(const Tensor& ids_TK, const Tensor& counts_E) {
  const char* name = "slot_map";
  check_beside(name, ids_TK, at::kInt, {{ids_TK, "ids_TK"}, {counts_E, "counts_E"}});
  check_dimensions(name, {ids_TK, "ids_TK"}, 2);
  const int64_t N = ids_TK.numel(), E = counts_E.numel(), K = ids_TK.size(1);
  check(E <= cuda::kMostExperts, "slot_map: the device's kernel holds at most 512 experts");
  const auto index = ids_TK.options();
  SlotMap map{at::empty({E}, index), at::empty({N}, index), at::empty({N}, index), at::empty_like(ids_TK)};
  Tensor chunk_counts = at::empty({std::max<int64_t>(1, cuda::slot_chunks(N)) * E}, index);
  cuda::slot_map({N, static_cast<int32_t>(E), static_cast<int32_t>(K), ids_TK.const_data_ptr<int32_t>(),
                  counts_E.const_data_ptr<int32_t>(), map.ends_E.mutable_data_ptr<int32_t>(),
                  map.rows_N.mutable_data_ptr<int32_t>(), map.picks_N.mutable_data_ptr<int32_t>(),
                  map.slots_TK.mutable_data_ptr<int32_t>(), chunk_counts.mutable_data_ptr<int32_t>()},
                 stream_of(ids_TK));
  return map;
}

void aggregate_on_device(const Tensor& rows_ND, const Tensor& slots_TK, Tensor& y_TD) {
  const char* name = "aggregate";
  check_dimensions(name, {slots_TK, "slots_TK"}, 2);
  check_dimensions(name, {rows_ND, "rows_ND"}, 2);
  check_beside(name, rows_ND, rows_ND.scalar_type(), {{rows_ND, "rows_ND"}, {y_TD, "y_TD"}});
  check_beside(name, rows_ND, at::kInt, {{slots_TK, "slots_TK"}});
  check_sizes(name, {y_TD, "y_TD"}, {slots_TK.size(0), rows_ND.size(1)});
  cuda::aggregate(
      {real_of(rows_ND), rows_ND.size(0), slots_TK.size(0), rows_ND.size(1), static_cast<int32_t>(slots_TK.size(1)),
       rows_ND.const_data_ptr(), slots_TK.const_data_ptr<int32_t>(), y_TD.mutable_data_ptr()},
      stream_of(rows_ND));
}

void zero_tail_on_device(const Tensor& ends_E, Tensor& rows_ND) {
  check_dimensions("zero_tail", {rows_ND, "rows_ND"}, 2);
  check_beside("zero_tail", rows_ND, rows_ND.scalar_type(), {{rows_ND, "rows_ND"}});
  check_beside("zero_tail", rows_ND, at::kInt, {{ends_E, "ends_E"}});
  cuda::zero_tail({real_of(rows_ND), rows_ND.size(0), rows_ND.size(1), static_cast<int32_t>(ends_E.numel()),
                   ends_E.const_data_ptr<int32_t>(), rows_ND.mutable_data_ptr()},
                  stream_of(rows_ND));
}

void accumulate_experts_on_device(const Tensor& products_EOI, const Tensor& ends_E, Tensor& sums_EOI) {
  const char* name = "accumulate_experts";
  const int64_t E = products_EOI.size(0), count = E == 0 ? 0 : products_EOI.numel() / E;
  check_beside(name, products_EOI, products_EOI.scalar_type(), {{products_EOI, "products_EOI"}});
  check_beside(name, products_EOI, at::kInt, {{ends_E, "ends_E"}});
  if (E > 0) check_beside(name, products_EOI, at::kFloat, {{sums_EOI[0], "sums_EOI[e]"}});
  cuda::accumulate_experts(
      {real_of(products_EOI), count, sums_EOI.stride(0), static_cast<int32_t>(E), ends_E.const_data_ptr<int32_t>(),
       products_EOI.const_data_ptr(), sums_EOI.mutable_data_ptr<float>()},
      stream_of(products_EOI));
}

}  // namespace conclave::kernels
