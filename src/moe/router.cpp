// SPDX-License-Identifier: Apache-2.0
#include "moe/router.h"

#include <array>

#include "core/error.h"

namespace conclave::moe {

// One for each file in routers/.
Router::Row topk_router();

std::span<const Router::Row> Router::table() {
  static const std::array<Row, 1> rows{topk_router()};
  return rows;
}

std::unique_ptr<Router> Router::make(const RouterConfig& config, int64_t top_k) {
  for (const auto& row : table()) {
    if (row.type == config.type) return row.make(config, top_k);
  }
  throw ConfigError("moe.router.type: no router is called '{}'", config.type);
}

}  // namespace conclave::moe
