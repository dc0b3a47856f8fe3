// SPDX-License-Identifier: Apache-2.0
#include "moe/router.h"

#include <array>

#include "core/error.h"

namespace conclave::moe {

// One for each file in routers/.
Router::Row base_router();
Router::Row default_moe_router();
Router::Row dense_backprop_group_router();
Router::Row expert_choice_router();
Router::Row hash_router();
Router::Row hierarchical_router();
Router::Row lory_router();
Router::Row noisy_topk_router();
Router::Row null_experts_router();
Router::Row relu_router();
Router::Row sinkhorn_router();
Router::Row sparsemixer_router();
Router::Row topk_router();
Router::Row zero_compute_router();

std::span<const Router::Row> Router::table() {
  static const std::array rows{
      topk_router(), noisy_topk_router(),  expert_choice_router(),        hash_router(),         sinkhorn_router(),
      relu_router(), sparsemixer_router(), hierarchical_router(),         null_experts_router(), zero_compute_router(),
      base_router(), default_moe_router(), dense_backprop_group_router(), lory_router()};
  return rows;
}

const Router::Row* Router::find(std::string_view type) {
  for (const auto& row : table())
    if (row.info.type == type) return &row;
  return nullptr;
}

std::unique_ptr<Router> Router::make(const RouterConfig& config, const RouteShape& shape) {
  if (const Row* row = find(config.type)) return row->make(config, shape);
  throw ConfigError("moe.router.type: no router is called '{}'", config.type);
}

}  // namespace conclave::moe
