// SPDX-License-Identifier: Apache-2.0
// The step's guard: a gradient that is not finite leaves no trace but a report that says which tensor and which rank;
// and which kinds of parameters decay.
#include <gmock/gmock.h>

#include "kernels/tensor_checks.h"
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

using ::testing::HasSubstr;

// A run on the ranks of `world` that can be stepped and looked at.
struct Training {
  Training(const comm::Group& world, const LayoutCase& layout_case, parallel::Reduction reduction, int64_t ep,
           const std::string& failpoint_text = "")
      : config(config_of(layout_case, reduction, ep, world.size())),
        mesh(world, parallel::mesh_sizes(config.parallel, world.size())),
        model({.model = config.model, .moe = config.moe, .seed = 11}, mesh.ep()),
        failpoints(failpoint_text, world.rank()),
        step(config, mesh, model, failpoints) {}

  static train::RunConfig config_of(const LayoutCase& layout_case, parallel::Reduction reduction, int64_t ep,
                                    int64_t world) {
    at::set_num_threads(1);
    auto config = layout_config(layout_case);
    config.parallel.reduction = reduction;
    config.parallel.ep = ep;
    train::resolve(config, world);
    return config;
  }

  train::StepReport run(int64_t number, bool without_targets = false) {
    const auto share = mesh.micro_batches(config.train.global_batch_size / config.train.micro_batch_size);
    std::vector<Batch> batches;
    for (int64_t m = 0; m < share.count; ++m) {
      batches.push_back(layout_batch(config, false, number, share.first + m));
      if (without_targets) std::fill(batches.back().loss_mask.begin(), batches.back().loss_mask.end(), 0.0f);
    }
    return step.run(number, batches);
  }

  std::map<std::string, std::string> state() {
    std::vector<std::vector<int64_t>> counts;
    return gather_entries(mesh.world(), train::full_state(model, step, mesh, counts));
  }

  train::RunConfig config;
  parallel::Mesh mesh;
  model::Transformer model;
  Failpoints failpoints;
  train::TrainStep step;
};

const LayoutCase kPlain{.name = "Plain"};
constexpr parallel::Reduction kBoth[] = {parallel::Reduction::kCanonical, parallel::Reduction::kFast};

TEST(StepGuardRanks, NamesTheTensorAndTheRankOfTheFirstGradientThatIsNotFinite) {
  for (const auto reduction : kBoth) {
    for (const int64_t ep : {1, 2}) {
      for (const int guilty : {0, 1}) {
        run_ranks(2, [&](const comm::Group& world) {
          // Each rank has four micro-batches a step: the poisoned one is in the middle of the second step.
          Training r(world, kPlain, reduction, ep, fmt::format("gradient:6:{}=nan", guilty));
          EXPECT_FALSE(r.run(0).skipped);
          const auto before = r.state();
          const auto report = r.run(1);
          ASSERT_TRUE(report.skipped.has_value());
          EXPECT_THAT(*report.skipped,
                      HasSubstr(fmt::format("gradient of embedding.weight is not finite (rank {})", guilty)));
          EXPECT_EQ(r.state(), before) << "weights, moments, biases and counts stay as they were";
          EXPECT_EQ(r.step.updates(), 1);
          EXPECT_FALSE(r.run(2).skipped);
          EXPECT_EQ(r.step.updates(), 2);
          EXPECT_NE(r.state(), before);
        });
      }
    }
  }
}

TEST(StepGuard, SkipsABatchWithoutTargets) {
  for (const auto reduction : kBoth) {
    Training r(comm::Group(), kPlain, reduction, 1);
    const auto before = r.state();
    const auto report = r.run(0, true);
    EXPECT_EQ(report.skipped, "no target of the batch counts");
    EXPECT_EQ(r.state(), before);
  }
}

// Kinds of parameters that a step with a learning rate of 1 and no gradient to speak of shrinks.
TEST(StepDecay, SparesTheKindsThatAreListedAndNoOthers) {
  for (const std::vector<std::string>& listed :
       {std::vector<std::string>{"norm", "bias", "router_bias"}, {"embedding", "router"}, {}}) {
    LayoutCase decaying{.name = "Decay", .change = [&](auto& config) {
                          config.optim.no_decay = listed;
                          config.model.qkv_bias = true;
                          config.optim.schedule = optim::ScheduleType::kConstant;
                          config.optim.lr = 1e-3, config.optim.weight_decay = 0.5;
                        }};
    LayoutCase plain = decaying;
    plain.change = [&](auto& config) {
      decaying.change(config);
      config.optim.weight_decay = 0.0;
    };
    Training with(comm::Group(), decaying, kBoth[1], 1), without(comm::Group(), plain, kBoth[1], 1);
    // Biases start at zero, where decay does not show.
    for (Training* r : {&with, &without})
      for (const bool expert : {false, true}) r->model.parameters().flat(expert).add_(0.25f);
    for (Training* r : {&with, &without}) EXPECT_FALSE(r->run(0).skipped);
    std::map<std::string, int> kinds;
    for (const auto& parameter : with.model.parameters().all()) {
      const std::string kind = nn::kind_name(parameter.kind);
      const bool spared = std::find(listed.begin(), listed.end(), kind) != listed.end();
      const auto value = [&](Training& r) {
        return nn::view_of(r.model.parameters().flat(parameter.expert), parameter);
      };
      EXPECT_EQ(value(with).equal(value(without)), spared) << parameter.parts[0].name;
      ++kinds[kind];
    }
    EXPECT_EQ(kinds.size(), 5u) << "weight, norm, bias, embedding, router";
  }
}

}  // namespace
}  // namespace conclave::test
