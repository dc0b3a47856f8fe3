// SPDX-License-Identifier: Apache-2.0
// What the device path is refused for, with the key, the reason and the remedy; and which configurations take it.
#include <gmock/gmock.h>

#include "config/config_files.h"
#include "train/step.h"

namespace conclave::train {
namespace {

using ::testing::HasSubstr;

const std::string kBase =
    "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n"
    "data: {train: [{name: a, path: a}], seq_len: 128}\n"
    "train: {precision: bf16}\n";

LoadedConfig load(const std::string& set, int64_t ranks = 1) {
  const ConfigFiles files;
  std::vector<config::Override> overrides;
  if (!set.empty()) overrides.push_back({config::Override::Kind::kSet, set});
  return load_config(files.write("run.yaml", kBase), overrides, {.world_size = ranks});
}

struct Refusal {
  std::string set, message;
  int64_t ranks = 1;
};

TEST(DevicePathRules, RefuseWhatIsNotBuiltWithAReasonAndARemedy) {
  for (const Refusal& refusal : std::vector<Refusal>{
           {"moe.router.type=sinkhorn", "routers of type sinkhorn with train.precision: bf16; use topk"},
           {"moe.router.second=random", "a random second expert with train.precision: bf16; use always"},
           {"moe.top_k=[{until: 9, k: 3}, {k: 2}]", "a schedule of top_k with train.precision: bf16; use one number"},
           {"moe.router.context=true", "a router with a context with train.precision: bf16; set false"},
           {"moe.router.recurrent={hidden_size: 8}", "a router with a state with train.precision: bf16; set null"},
           {"moe.branch=parallel", "a dense FFN beside the experts with train.precision: bf16; use serial"},
           {"moe.router.jitter=0.1", "jitter with train.precision: bf16; set 0"},
           {"moe.capacity.factor=1.25", "capacity limits with train.precision: bf16; set null (dropless)"},
           {"moe.capacity.eval_factor=2", "capacity limits with train.precision: bf16; set null (dropless)"},
           {"moe.balance.losses=[{type: importance}]", "losses of type importance with"},
           {"moe.expert_hidden_size=[64, 64, 64, 64, 64, 64, 64, 128]",
            "experts of different widths with train.precision: bf16; give one number"},
           {"moe.dispatch.type=shared", "dispatch shared with train.precision: bf16; use auto or alltoall"},
           {"moe.dispatch.payload=bf16", "rows that travel in another type with train.precision: bf16; use same"},
           {"moe.dispatch.compression={hashes: 2}", "rows that travel as one with train.precision: bf16; set null"},
           {"parallel.reduction=canonical", "use fast"},
           {"parallel.executor=interleaved", "use sequential"},
           {"parallel.gradient_payload=bf16", "gradients that travel in another type with train.precision: bf16", 2},
           {"parallel.tp=2", "tensors that are spread over ranks with train.precision: bf16; set tp: 1 and spread", 2},
           {"parallel={tp: 2, etp: 2}", "parallel.etp: not built yet: tensors that are spread over ranks", 2},
       }) {
    SCOPED_TRACE(refusal.set);
    const std::string message = config_error([&] { load(refusal.set, refusal.ranks); });
    EXPECT_THAT(message, HasSubstr(refusal.set.substr(0, refusal.set.find('='))));
    EXPECT_THAT(message, HasSubstr("not built yet: "));
    EXPECT_THAT(message, HasSubstr(refusal.message));
  }
}

TEST(DevicePathRules, SizesThatBf16RowsDoNotFitAreAskedForOnAGpuOnly) {
  RunConfig config = load("").config;
  config.model.hidden_size = 60, config.model.head_dim = 15, config.moe.expert_hidden_size = 100;
  EXPECT_TRUE(device_obstacles([&] { return config.train.device = "cpu", config; }()).empty());
  config.train.device = "cuda";
  std::vector<std::string> keys;
  for (const auto& obstacle : device_obstacles(config)) keys.push_back(obstacle.key);
  EXPECT_THAT(keys, ::testing::ElementsAre("model.hidden_size", "model.head_dim", "moe.expert_hidden_size"));
  config.train.precision = "fp32";
  EXPECT_TRUE(device_obstacles(config).empty());
  config.moe.num_experts = std::vector<int64_t>{8, 300}, config.moe.granularity = 2;
  ASSERT_EQ(device_obstacles(config).size(), 1u);
  EXPECT_EQ(device_obstacles(config)[0].what, "600 experts in a layer");
}

TEST(DevicePathRules, AModelWithoutExpertsHasNoRouterToRefuse) {
  const auto loaded = load("moe={enabled: false, router: {jitter: 0.1}, capacity: {factor: 1.0}}");
  EXPECT_TRUE(device_obstacles(loaded.config).empty());
}

TEST(DevicePathRules, DecideWhereAndInWhatAModelComputes) {
  RunConfig config = load("").config;
  ASSERT_TRUE(transformer_config(config).device.has_value());
  EXPECT_EQ(transformer_config(config).device->device, at::Device(at::kCPU));
  EXPECT_EQ(transformer_config(config).device->compute, at::kBFloat16);
  config.train.precision = "auto";
  EXPECT_FALSE(transformer_config(config).device.has_value()) << "the host path";
  config.train.precision = "fp32";
  EXPECT_FALSE(transformer_config(config).device.has_value());
  config.train.device = "cuda";
  EXPECT_EQ(transformer_config(config).device->device, at::Device(at::kCUDA));
  EXPECT_EQ(transformer_config(config).device->compute, at::kFloat);
  config.train.precision = "auto";
  EXPECT_EQ(transformer_config(config).device->compute, at::kBFloat16);
}

}  // namespace
}  // namespace conclave::train
