// SPDX-License-Identifier: Apache-2.0
// Lory (Zhong et al. 2024, arXiv 2405.03133) in the table of routers: what it scores are segments, and what comes of
// the scores are merged weights, so the layer has SoftMerge (moe/soft_merge.h) instead of a route and an exchange.
#include "core/error.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

class LoryRouter : public Router {
 public:
  Choice route(const Tensor&, const RouteInput&) const override { throw chooses_nothing(); }
  void weigh(Choice&, const RouteInput&) const override { throw chooses_nothing(); }
  Tensor backward(const Choice&, const ChoiceGradients&) const override { throw chooses_nothing(); }

 private:
  static BugError chooses_nothing() { return BugError("lory merges experts and routes no token"); }
};

std::unique_ptr<Router> make(const RouterConfig&, const RouteShape&) { return std::make_unique<LoryRouter>(); }

}  // namespace

Router::Row lory_router() {
  return {{.type = "lory",
           .what = "experts merged for each segment by what the segment before it asks for",
           .source = "Zhong et al. 2024, arXiv 2405.03133",
           .equation = "theta_s = sum_e q_e theta_e, q = softmax(R mean of segment s - 1)",
           .causality = Causality::kPositionCausal,
           .exports = "needs code: merged experts"},
          make};
}

}  // namespace conclave::moe
