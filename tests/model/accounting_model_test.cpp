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
    ::testing::Values(
        Case{"default", [](auto&) {}}, Case{"dense_twin", [](auto& c) { c.moe.enabled = false; }},
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
        Case{"null_experts",
             [](auto& c) {
               c.moe.router.type = "null_experts";
               c.moe.router.null_experts = {.count = 3};
             }},
        Case{"zero_compute",
             [](auto& c) {
               c.moe.router.type = "zero_compute";
               c.moe.router.zero_compute = {.zero = 1, .copy = 1, .constant = 2};
             }},
        Case{"base", [](auto& c) { c.moe.router.type = "base", c.moe.top_k = 1; }},
        Case{"default_moe", [](auto& c) { c.moe.router.type = "default_moe"; }},
        Case{"context", [](auto& c) { c.moe.router.context = true; }},
        Case{"context_of_all_layers", [](auto& c) { c.moe.router.context = true, c.moe.router.share = "model"; }},
        Case{"recurrent", [](auto& c) { c.moe.router.recurrent = {.hidden_size = 6}; }},
        Case{"recurrent_after_a_dense_layer",
             [](auto& c) {
               c.moe.router.recurrent = {.hidden_size = 6};
               c.moe.layers = moe::LayerPattern{1, 1};
             }},
        Case{"parallel", [](auto& c) { c.moe.branch = moe::Branch::kParallel; }},
        Case{"pr_moe",
             [](auto& c) {
               c.moe.branch = moe::Branch::kParallel, c.moe.branch_gate = "softmax";
               c.moe.num_experts = std::vector<int64_t>{2, 4};
             }},
        Case{"arctic", [](auto& c) { c.moe.branch = moe::Branch::kResidual; }},
        Case{"fallback",
             [](auto& c) {
               c.moe.capacity.factor = 1.0;
               c.moe.fallback = {.hidden_size = 8};
             }},
        Case{"omni_router", [](auto& c) { c.moe.router.share = "model"; }},
        Case{"granular", [](auto& c) { c.moe.granularity = 3; }},
        Case{"shared_with_gate", [](auto& c) { c.moe.num_shared_experts = 2, c.moe.shared_gate = true; }}),
    [](const auto& info) { return info.param.name; });

TEST(AccountingModelRecurrent, EveryLayerComputesTheUnitThatIsCountedOnce) {
  auto config = testing::tiny_config();
  config.moe.router.recurrent = {.hidden_size = 6};
  const auto shape = model::model_shape(config.model, config.moe);
  const int64_t D = 16, H = 6, E = 4, layers = 2;
  EXPECT_EQ(model::count_flops(shape, model::Counter::kExact, 12).router, layers * 2 * (D * H + 6 * H * H + H * E));
  const auto count = model::count_parameters(shape, model::Counter::kExact);
  EXPECT_EQ(count.layers[0].router - count.layers[1].router, 6 * H * H + 6 * H);
}

}  // namespace
}  // namespace conclave
