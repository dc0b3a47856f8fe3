// SPDX-License-Identifier: Apache-2.0
// The device side of the functions of norm.h, swiglu.h, rope.h, rows.h, embedding.h, cross_entropy.h and
// optimizer.h, which call these for tensors that placement.h finds on a device. Rows are float or bf16; what a row has
// one number of, and gradients of weights, are float. Arguments are checked but for index values, which only the device
// knows: a row, position or target that is not there gives NaN. Nothing waits for the device.
#pragma once

#include "core/tensor.h"
#include "kernels/cross_entropy.h"
#include "kernels/loops_table.h"
#include "kernels/moe_device.h"
#include "kernels/optimizer.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace conclave::kernels {

void rms_norm_on_device(const Tensor& x_TD, const Tensor& weight_D, double eps, Tensor& y_TD, Tensor& rstd_T);
void rms_norm_backward_input_on_device(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& weight_D,
                                       const Tensor& rstd_T, Tensor& dx_TD);
void rms_norm_backward_weight_on_device(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& rstd_T,
                                        Tensor& dweight_D);
void swiglu_on_device(const Tensor& h_N2F, const Tensor& scale_N, Tensor& out_NF);
void swiglu_backward_on_device(const Tensor& dout_NF, const Tensor& h_N2F, const Tensor& scale_N,
                               SwigluGradients& gradients);
void rope_on_device(Tensor& x_TND, const Tensor& position_ids_T, const RopeTable& table, bool inverse);

void gather_rows_on_device(const Tensor& src_TD, const Tensor& rows_N, Tensor& dst_ND);
void embedding_backward_on_device(const Tensor& dy_TD, const Tensor& tokens_T, Tensor& dweight_VD);
void add_bias_on_device(Tensor& y_TO, const Tensor& bias_O);
void sum_columns_on_device(const Tensor& dy_TO, Tensor& dbias_O);
void add_on_device(Tensor& y, const Tensor& x);

void cross_entropy_rows_on_device(Tensor& logits_NV, const Tensor& targets_N, const Tensor& mask_N, bool gradient,
                                  Tensor& loss_N);
void cross_entropy_part_on_device(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient, Tensor& lse_N,
                                  Tensor& target_N);
void finish_cross_entropy_part_on_device(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient,
                                         const Tensor& share_N, Tensor& loss_N);

Tensor slice_sums_of_squares_on_device(const Tensor& x);
Tensor sum_of_squares_on_device(const Tensor& x);
Tensor first_non_finite_on_device(const Tensor& x);
void adamw_on_device(const AdamWBuffers& buffers, const Tensor& blocks, const AdamWFactors& factors);

Routed route_on_device(const Tensor& logits_TE, const Tensor& bias_E, const Tensor& segment_ids_BS,
                       const RouteRule& rule);
Tensor route_backward_on_device(const Routed& routed, const Tensor& segment_ids_BS, const RouteGradients& gradients,
                                const RouteRule& rule);
SlotMap slot_map_on_device(const Tensor& ids_TK, const Tensor& counts_E);
void aggregate_on_device(const Tensor& rows_ND, const Tensor& slots_TK, Tensor& y_TD);
void zero_tail_on_device(const Tensor& ends_E, Tensor& rows_ND);
void accumulate_experts_on_device(const Tensor& products_EOI, const Tensor& ends_E, Tensor& sums_EOI);

}  // namespace conclave::kernels
