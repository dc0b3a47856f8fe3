// SPDX-License-Identifier: Apache-2.0
// One pass over flat ranges of parameters: AdamW, the norm, the non-finite guard, initialisation. Float or double. Bits
// depend neither on threads nor, element by element, on where a range was cut. Functions that return numbers are for
// tensors on the CPU; those that return tensors also work on a device, for floats, and do not wait for it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"

namespace conclave::kernels {

struct AdamWStep {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;       // counts from 1: the bias correction divides by 1 - beta^step
  double grad_scale = 1;  // the gradient is multiplied by this first (1 / tokens, clipping)
};

// torch.optim.AdamW: decoupled decay (Loshchilov and Hutter 2019), eps outside the bias-corrected root. Any shape.
void adamw(Tensor& parameter, Tensor& m, Tensor& v, const Tensor& gradient, const AdamWStep& step);

// Elements with the same treatment: where they are in the parameters, and in gradients and moments.
struct AdamWRange {
  int64_t begin, at, count;
  bool decays = true;
};
// What a step reads and writes, flat and on one device.
struct AdamWBuffers {
  Tensor parameters;       // fp32: the masters
  Tensor m, v, gradients;  // of the parameters that are trained here
  Tensor copy = {};        // bf16, as long as `parameters`: gets what was updated, rounded; undefined = none
  Tensor factor_1 = {};    // fp64: multiplies the gradients too, for a clipping factor that only the device knows
};
// The list of blocks that adamw_blocks() works through, on the device of `parameters`. Made once.
Tensor adamw_blocks(std::span<const AdamWRange> ranges, const Tensor& parameters);
// AdamW over all blocks, on a device in one launch.
void adamw(const AdamWBuffers& buffers, const Tensor& blocks, const AdamWStep& step);

// Elements per slice of a norm. Where shards are cut at multiples of it, the slices are the same in every layout.
inline constexpr int64_t kNormSlice = 65536;

// The sum of squares in fp64 of each slice of kNormSlice elements; the last slice may be shorter.
std::vector<double> slice_sums_of_squares(const Tensor& x);

// The same as an fp64 tensor on the device of x. Sums run in one order, for floats the CPU's: the bits are equal.
Tensor device_slice_sums_of_squares(const Tensor& x);

// The tree (core/tree_sum.h) over the slices: the same bits for any number of threads.
double sum_of_squares(const Tensor& x);
Tensor device_sum_of_squares_1(const Tensor& x);  // fp64, on the device of x

// Index of the first NaN or infinity in memory order, or -1.
int64_t first_non_finite(const Tensor& x);
Tensor device_first_non_finite_1(const Tensor& x);  // int64, on the device of x

// Element i becomes random.normal(first_element + i) * std, so a shard holds what the whole tensor would.
// On the CPU only: weights are made there, wherever a model lives, so that their bits are the same.
void fill_normal(Tensor& x, const Random& random, uint64_t first_element, double std);

}  // namespace conclave::kernels
