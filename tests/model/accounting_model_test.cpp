// SPDX-License-Identifier: Apache-2.0
// The exact counter against the parameters that the transformer really registers.
#include <gtest/gtest.h>

#include "model/accounting.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

struct Case {
  std::string name;
  std::function<void(model::TransformerConfig&)> change;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class AccountingModelTest : public ::testing::TestWithParam<Case> {};

TEST_P(AccountingModelTest, CountsWhatTheTransformerHolds) {
  auto config = testing::tiny_config();
  GetParam().change(config);
  const model::Transformer transformer(config);
  const auto count = model::count_parameters(transformer.shape(), model::Counter::kExact);
  int64_t total = 0, experts = 0;
  for (const auto& parameter : transformer.parameters().all()) {
    for (const auto& part : parameter.parts) {
      total += nn::element_count(part.shape);
      if (parameter.expert) experts += nn::element_count(part.shape);
    }
  }
  EXPECT_EQ(total, count.total());
  EXPECT_EQ(experts, count.experts());
}

INSTANTIATE_TEST_SUITE_P(
    Features, AccountingModelTest,
    ::testing::Values(Case{"default", [](auto&) {}}, Case{"dense_twin", [](auto& c) { c.moe.enabled = false; }},
                      Case{"qk_norm_full", [](auto& c) { c.model.qk_norm = model::QkNorm::kFull; }},
                      Case{"qk_norm_head", [](auto& c) { c.model.qk_norm = model::QkNorm::kHead; }},
                      Case{"qkv_bias", [](auto& c) { c.model.qkv_bias = true; }},
                      Case{"tied", [](auto& c) { c.model.tie_embeddings = true; }},
                      Case{"first_layer_dense",
                           [](auto& c) {
                             c.moe.layers = moe::LayerPattern{1, 1};
                           }},
                      Case{"hash", [](auto& c) { c.moe.router.type = "hash"; }},
                      Case{"noisy_topk", [](auto& c) { c.moe.router.type = "noisy_topk"; }},
                      Case{"hierarchical",
                           [](auto& c) {
                             c.moe.router.type = "hierarchical";
                             c.moe.router.hierarchical = {.groups = 2, .group_k = 1};
                           }},
                      Case{"omni_router", [](auto& c) { c.moe.router.share = "model"; }},
                      Case{"granular", [](auto& c) { c.moe.granularity = 3; }},
                      Case{"shared_with_gate",
                           [](auto& c) { c.moe.num_shared_experts = 2, c.moe.shared_gate = true; }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave
