// SPDX-License-Identifier: Apache-2.0
// How fast this machine multiplies matrices through the BLAS that training uses: the ceiling that a step is held
// against, and the products of one model. On the CPU on as many threads as this rank has.
#pragma once

#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace conclave::app {

// The three products of a weight W [columns, depth] in a step over `rows` rows.
enum class Pass { kForward, kInputGradient, kWeightGradient };

struct Product {
  std::string name;
  int64_t rows, depth, columns;
  Pass pass = Pass::kForward;

  double flops() const { return 2.0 * static_cast<double>(rows) * static_cast<double>(depth * columns); }
};

struct ProductSpeed {
  double best_gflops = 0, median_gflops = 0;
};

// Each product for about `seconds`, seven times over, on random normal numbers: constant ones let a GPU clock higher.
// In the order of `products`. In `options`' type and on its device; on a GPU every product is waited for, so only large
// ones say anything.
std::vector<ProductSpeed> measure(std::span<const Product> products, double seconds,
                                  const at::TensorOptions& options = at::kFloat);

// The product as a call, on operands of random normal numbers in `options`' type and on its device. On a GPU a call
// starts it and does not wait.
std::function<void()> product_call(const Product& product, const at::TensorOptions& options);

// The product that stands for the ceiling: 2048 in all sizes, 8192 on a GPU.
Product ceiling_product(bool on_gpu = false);

}  // namespace conclave::app
