// SPDX-License-Identifier: Apache-2.0
#include "model/thread_check.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "core/random.h"
#include "kernels/optimizer.h"
#include "kernels/row_invariance.h"
#include "model/product_shapes.h"
#include "nn/linear.h"
#include "nn/loss.h"

namespace conclave::model {
namespace {

Tensor random_matrix(int64_t rows, int64_t columns, const char* name) {
  Tensor matrix = at::empty({rows, columns}, at::kFloat);
  kernels::fill_normal(matrix, Random(1, Purpose::kTest, name), 0, 1.0);
  return matrix;
}

bool of_expert(const NamedProduct& product) { return product.name.starts_with("expert "); }

// The product whose bits depend on the threads, or "".
std::string obstacle(const NamedProduct& linear, int64_t rows, int threads) {
  const auto [inputs, outputs] = linear.shape;
  const Tensor x = random_matrix(rows, inputs, "x"), dy = random_matrix(rows, outputs, "dy");
  const Tensor w = random_matrix(outputs, inputs, "weight");
  const auto weight_gradient = [&] {
    Tensor dw = at::empty_like(w);
    nn::linear_backward_weight(dy, x, true, dw);
    return dw;
  };
  const std::pair<const char*, std::function<Tensor()>> products[] = {
      {"forward product",
       [&] {
         return of_expert(linear) ? at::mm(x, w.t())  // experts do not pad few outputs
                                  : nn::linear_forward(x, w);
       }},
      {"input gradient", [&] { return of_expert(linear) ? at::mm(dy, w) : nn::linear_backward_input(dy, w); }},
      {"weight gradient", weight_gradient}};
  for (const auto& [which, product] : products) {
    if (kernels::threads_do_not_show(product, threads)) continue;
    return fmt::format("the {} of {} ({} rows, {} inputs, {} outputs) has other bits on {} threads than on one", which,
                       linear.name, rows, inputs, outputs, threads);
  }
  return "";
}

// Rows on which a product runs. An expert's may be any multiple of 16: a few stand for all.
std::vector<int64_t> row_counts(const NamedProduct& product, int64_t tokens) {
  if (of_expert(product)) return {16, 32, 48, 112, 208, 256};
  if (product.name != "head") return {tokens};
  std::vector<int64_t> chunks = {std::min(tokens, nn::Loss::kChunk)};
  if (tokens > nn::Loss::kChunk && tokens % nn::Loss::kChunk != 0) chunks.push_back(tokens % nn::Loss::kChunk);
  return chunks;
}

}  // namespace

std::string thread_obstacle(const ModelShape& shape, int64_t tokens, int threads) {
  if (threads == 1) return "";
  for (const auto& product : product_shapes(shape)) {
    for (const int64_t rows : row_counts(product, tokens)) {
      if (auto text = obstacle(product, rows, threads); !text.empty()) return text;
    }
  }
  return "";
}

std::string canonical_obstacle(const ModelShape& shape, int64_t tokens, int threads) {
  std::vector<kernels::ProductShape> shapes;
  for (const auto& product : product_shapes(shape)) shapes.push_back(product.shape);
  const auto obstacle = kernels::canonical_obstacle(1, shapes);
  return obstacle.empty() ? thread_obstacle(shape, tokens, threads) : obstacle;
}

}  // namespace conclave::model
