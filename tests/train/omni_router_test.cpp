// SPDX-License-Identifier: Apache-2.0
// moe.router.share: model, one router for all layers (methods.md 1.19, 8).
#include "kernels/tensor_checks.h"
#include "model/accounting.h"
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

LayoutCase with_router(
    const std::string& share, const std::string& type,
    std::function<void(model::Transformer&)> prepare = [](auto&) {}) {
  return {.name = share,
          .change =
              [=](auto& config) {
                config.moe.router.share = share;
                config.moe.router.type = type;
                config.moe.balance.bias.update_rate = 0;
                config.model.num_layers = 3;
              },
          .prepare = std::move(prepare)};
}

// Routers by the name of their block, "router" or "router.noise".
std::vector<std::pair<std::string, Tensor>> routers(nn::Parameters& parameters) {
  std::vector<std::pair<std::string, Tensor>> found;
  for (const auto& p : parameters.all()) {
    const std::string& name = p.parts[0].name;
    if (p.kind == nn::ParameterKind::kRouter)
      found.push_back({name.substr(name.find("moe.")), nn::view_of(parameters.flat(false), p)});
  }
  return found;
}

TEST(OmniRouter, ItsGradientIsTheSumOverTheLayersOfAnUntiedClone) {
  for (const std::string type : {"topk", "noisy_topk"}) {
    for (const auto reduction : {parallel::Reduction::kCanonical, parallel::Reduction::kFast}) {
      const auto draw = [](auto& model) {
        for (auto& [name, weight] : routers(model.parameters()))
          weight.copy_(kernels::random_tensor(weight.sizes().vec(), at::kFloat, name.size()) * 0.2);
      };
      RankRun shared({}, {}, with_router("model", type, draw), reduction),
          apart({}, {}, with_router("layer", type, draw), reduction);
      ASSERT_EQ(routers(shared.parameters()).size() * 3, routers(apart.parameters()).size());
      EXPECT_EQ(shared.step(0).loss, apart.step(0).loss);
      std::map<std::string, std::vector<double>> sums;
      for (const auto& [key, bytes] : apart.all_gradients()) {
        if (key.find("moe.router") == std::string::npos) continue;
        auto& sum = sums[key.substr(key.find("moe."))];
        const auto own = numbers(bytes);
        sum.resize(own.size(), 0.0);
        for (size_t i = 0; i < own.size(); ++i) sum[i] += own[i];
      }
      const auto gradients = shared.all_gradients();
      ASSERT_FALSE(sums.empty());
      for (const auto& [key, expected] : sums) {
        auto difference = numbers(gradients.at(key));
        for (size_t i = 0; i < expected.size(); ++i) difference[i] -= expected[i];
        EXPECT_LT(norm_of(difference), 1e-5 * norm_of(expected)) << key;
      }
    }
  }
}

TEST(OmniRouterRanks, ItsCopiesAreEqualAfterTenSteps) {
  auto ten = with_router("model", "topk");
  ten.change = [change = ten.change](auto& config) {
    change(config);
    config.train.steps = 10;
    config.model.num_key_value_heads = 4;
    config.train.micro_batch_size = 4;
  };
  constexpr auto kCanonical = parallel::Reduction::kCanonical;
  RankRun alone({}, {}, ten, kCanonical);
  const Tensor drawn = routers(alone.parameters()).at(0).second.clone();
  for (int64_t step = 0; step < 10; ++step) alone.step(step);
  const Tensor trained = routers(alone.parameters()).at(0).second;
  EXPECT_GT((trained - drawn).abs().max().item<double>(), 1e-2);
  for (const Layout& layout : {Layout{.dp = 2}, Layout{.dp = 2, .ep = 2}, Layout{.tp = 2}}) {
    run_ranks(2, [&](const comm::Group& world) {
      RankRun run(world, layout, ten, kCanonical);
      for (int64_t step = 0; step < 10; ++step) run.step(step);
      const auto copies = routers(run.parameters());
      ASSERT_EQ(copies.size(), 1u) << "one for all layers";
      const Tensor own = copies[0].second.contiguous();
      const auto bytes = world.all_gather_text({static_cast<const char*>(own.data_ptr()), own.nbytes()});
      EXPECT_EQ(bytes[0], bytes[1]);
      if (layout.tp == 1) {
        EXPECT_TRUE(own.equal(trained));
      }
    });
  }
}

TEST(OmniRouter, CountsOnce) {
  RankRun run({}, {}, with_router("model", "topk"), parallel::Reduction::kCanonical);
  const auto& shape = run.model().shape();
  int64_t held = 0;
  for (const auto& p : run.parameters().all()) held += p.count;
  EXPECT_EQ(model::count_parameters(shape, model::Counter::kExact).total(), held);
  EXPECT_EQ(model::count_flops(shape, model::Counter::kExact, 12).router, 3 * 2 * 32 * 8) << "but every layer computes";
}

}  // namespace
}  // namespace conclave::test
