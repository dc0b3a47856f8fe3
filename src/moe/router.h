// SPDX-License-Identifier: Apache-2.0
// A router turns logits into a choice of experts with weights, and the gradient of the weights into one of the logits.
// It owns no parameters, knows no transport and drops nothing. One file per router in routers/, one row in the table in
// router.cpp.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "moe/moe_config.h"
#include "moe/routing.h"

namespace conclave::moe {

class Router {
 public:
  virtual ~Router() = default;
  // `bias_E` is added to the scores for the selection only (loss-free balancing); undefined = none.
  virtual Choice route(const Tensor& logits_TE, const Tensor& bias_E) const = 0;
  // Raw scores and weights of `choice` again, after its ids were replaced.
  virtual void weigh(Choice& choice) const = 0;
  // dlogits from dweights; selection has no gradient (methods.md 0.2).
  virtual Tensor backward(const Tensor& dweights_TK, const Choice& choice) const = 0;

  struct Row {
    std::string_view type;
    std::unique_ptr<Router> (*make)(const RouterConfig& config, int64_t top_k);
  };
  static std::span<const Row> table();
  // Throws ConfigError for an unknown type.
  static std::unique_ptr<Router> make(const RouterConfig& config, int64_t top_k);
};

}  // namespace conclave::moe
