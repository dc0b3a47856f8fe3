// SPDX-License-Identifier: Apache-2.0
#include "train/replica_check.h"

#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

constexpr std::string_view kBias = "layers.1.moe.router.bias";

struct Flip {
  std::string name;
  Layout layout;
  int rank;            // of the world, whose bit flips
  const char* tensor;  // "" = none flips
  std::string says;    // part of the message on ranks that hold copies
  std::vector<std::string> rank_order = parallel::ParallelConfig().rank_order;
};

class ReplicaCheckRanks : public ::testing::TestWithParam<Flip> {};

void flip_a_bit(nn::Parameters& parameters, const std::string& name) {
  for (const auto& parameter : parameters.all()) {
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      if (part.name == name)
        reinterpret_cast<uint32_t*>(parameters.flat(parameter.expert).data_ptr<float>())[begin] ^= 1;
      begin += nn::element_count(part.held());
    }
  }
}

void flip_a_bit_of_the_bias(model::Transformer& model) {
  reinterpret_cast<uint32_t*>(model.state().layers[1].values<float>("bias").data())[3] ^= 1;
}

TEST_P(ReplicaCheckRanks, ABitThatFlipsIsNamedWithItsRank) {
  const LayoutCase plain{.name = "Plain", .change = [](auto& config) {
                           config.train.micro_batch_size = 4;
                           config.parallel.rank_order = GetParam().rank_order;
                         }};
  std::vector<std::string> said(GetParam().layout.ranks());
  // Who throws fails the others, as an ending process does: some wait in the next comparison.
  rank_outcomes(GetParam().layout.ranks(), [&](const comm::Group& world) {
    RankRun run(world, GetParam().layout, plain, parallel::Reduction::kFast);
    run.step(0);
    EXPECT_NO_THROW(train::check_replicas(run.model()));
    world.barrier();
    if (world.rank() == GetParam().rank) {
      flip_a_bit(run.parameters(), GetParam().tensor);
      if (GetParam().tensor == kBias) flip_a_bit_of_the_bias(run.model());
    }
    try {
      train::check_replicas(run.model());
    } catch (const NumericError& error) {
      said[world.rank()] = error.what();
      throw;
    }
  });
  EXPECT_NE(said[GetParam().rank].find(GetParam().says), std::string::npos) << said[GetParam().rank];
}

INSTANTIATE_TEST_SUITE_P(
    All, ReplicaCheckRanks,
    ::testing::Values(
        Flip{"OneOfFourCopies",
             {.dp = 4},
             2,
             "layers.1.attention.q.weight",
             "copies of layers.1.attention.q.weight are no longer equal on the ranks of dp (0, 1, 2, 3): rank 2 "
             "differs"},
        Flip{"OneOfTwoCopies", {.dp = 2}, 1, "final_norm.weight", "dp (0, 1): ranks 0, 1 differ"},
        Flip{"WholeOnTensorRanks",
             {.tp = 2},
             0,
             "layers.0.moe.router.weight",
             "the ranks of tp (0, 1): ranks 0, 1 differ"},
        Flip{"Expert",
             {.dp = 4, .ep = 2},
             3,
             "layers.0.moe.experts.5.down.weight",
             "copies of layers.0.moe.experts.5.down.weight are no longer equal on the ranks of edp (1, 3)"},
        Flip{"BiasOfARouter", {.dp = 4}, 1, kBias.data(), "copies of layers.1.moe.router.bias are no longer equal"},
        Flip{"BiasOnTensorRanks", {.tp = 2}, 1, kBias.data(), "the ranks of tp (0, 1): ranks 0, 1 differ"},
        // Ranks of the mesh 0 2 1 3; the message has those of the job.
        Flip{"RanksInAnotherOrder",
             {.dp = 2, .tp = 2},
             1,
             "layers.0.attention.q.weight",
             "the ranks of dp (0, 1): ranks 0, 1 differ",
             {"tp", "pp", "cp", "dp"}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::test
