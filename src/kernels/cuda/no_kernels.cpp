// SPDX-License-Identifier: Apache-2.0
// Compiled into builds without CUDA instead of the .cu files. Nothing calls these: without CUDA no tensor is on a
// device.
#include "core/error.h"
#include "kernels/cuda/columns.h"
#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/optimizer.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/swiglu.h"

namespace conclave::kernels::cuda {
namespace {

void absent() { check(false, "a device kernel in a build without CUDA"); }

}  // namespace

void rms_norm(const RmsNorm&, Stream) { absent(); }
void rms_norm_backward_input(const RmsNormBackward&, Stream) { absent(); }
void sum_columns(const ColumnSum&, Stream) { absent(); }
void rope(const Rope&, Stream) { absent(); }
void swiglu(const Swiglu&, Stream) { absent(); }
void swiglu_backward(const SwigluBackward&, Stream) { absent(); }
void gather_rows(const GatherRows&, Stream) { absent(); }
void embedding_backward(const EmbeddingBackward&, Stream) { absent(); }
void add_bias(const AddBias&, Stream) { absent(); }
void add(const Add&, Stream) { absent(); }
void cross_entropy_rows(const CrossEntropy&, Stream) { absent(); }
void cross_entropy_part(const CrossEntropyPart&, Stream) { absent(); }
void finish_cross_entropy_part(const CrossEntropyPart&, Stream) { absent(); }
void slice_sums_of_squares(const float*, int64_t, double*, Stream) { absent(); }
void tree_sum(double*, int64_t, double*, Stream) { absent(); }
void first_non_finite(const float*, int64_t, int64_t*, int64_t*, Stream) { absent(); }
void adamw(const AdamW&, Stream) { absent(); }
void route(const Route&, Stream) { absent(); }
void route_backward(const RouteBackward&, Stream) { absent(); }
void slot_map(const Slots&, Stream) { absent(); }
void aggregate(const Aggregate&, Stream) { absent(); }
void zero_tail(const ZeroTail&, Stream) { absent(); }
void accumulate_experts(const AccumulateExperts&, Stream) { absent(); }

}  // namespace conclave::kernels::cuda
