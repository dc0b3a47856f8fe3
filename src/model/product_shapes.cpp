// SPDX-License-Identifier: Apache-2.0
#include "model/product_shapes.h"

#include <algorithm>

namespace conclave::model {
namespace {

void add(std::vector<NamedProduct>& products, NamedProduct product) {
  const auto same = [&](const NamedProduct& other) {
    return other.name == product.name && other.shape.depth == product.shape.depth &&
           other.shape.columns == product.shape.columns;
  };
  if (std::none_of(products.begin(), products.end(), same)) products.push_back(std::move(product));
}

void add_feed_forward(const std::string& name, int64_t hidden, int64_t width, double row_share,
                      std::vector<NamedProduct>& products) {
  add(products, {name + " gate and up", {hidden, 2 * width}, row_share});
  add(products, {name + " down", {width, hidden}, row_share});
}

void add_router(const ModelShape& shape, const LayerShape& layer, std::vector<NamedProduct>& products) {
  const int64_t columns = layer.num_experts + layer.home_experts, H = layer.router_state;
  if (H == 0) return add(products, {"router", {layer.router_context ? 2 * shape.hidden : shape.hidden, columns}});
  add(products, {"router projection", {shape.hidden, H}});
  add(products, {"router gates", {H, 3 * H}});
  add(products, {"router", {H, columns}});
}

}  // namespace

std::vector<NamedProduct> product_shapes(const ModelShape& shape) {
  std::vector<NamedProduct> products;
  add(products, {"query, key and value", {shape.hidden, (shape.heads + 2 * shape.kv_heads) * shape.head_dim}});
  add(products, {"attention output", {shape.heads * shape.head_dim, shape.hidden}});
  for (const LayerShape& layer : shape.layers) {
    if (layer.ffn_width > 0) add_feed_forward("dense", shape.hidden, layer.ffn_width, 1, products);
    if (layer.shared_width > 0) add_feed_forward("shared expert", shape.hidden, layer.shared_width, 1, products);
    if (layer.merges()) {
      add_feed_forward("merged expert", shape.hidden, layer.expert_width, 1, products);
      add(products, {"router", {shape.hidden, layer.num_experts}});
    }
    if (!layer.moe) continue;
    if (layer.fallback_width > 0) add_feed_forward("fallback", shape.hidden, layer.fallback_width, 1, products);
    const double share = layer.mean_picks / static_cast<double>(layer.num_experts);
    for (const int64_t width : layer.different_widths())
      add_feed_forward("expert", shape.hidden, width, share, products);
    add_router(shape, layer, products);
  }
  add(products, {"head", {shape.hidden, shape.vocab}});
  return products;
}

}  // namespace conclave::model
