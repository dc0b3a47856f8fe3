// SPDX-License-Identifier: Apache-2.0
// Copies that the device path keeps beside its fp32 masters: the bf16 weights that stages read, and what a checkpoint
// takes to the host.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

LayoutCase in_bf16() {
  return {.name = "Bf16", .device = model::DevicePath{.device = at::kCPU, .compute = at::kBFloat16}};
}

// The update writes them; nothing is left for the next step to round.
TEST(DeviceCopies, OfWeightsFollowTheUpdate) {
  RankRun run({}, {}, in_bf16(), parallel::Reduction::kFast);
  const nn::Parameters& parameters = run.parameters();
  for (int64_t i = 0; i < 2; ++i) {
    const Tensor before = parameters.copy_of(true).clone();
    run.step(i);
    for (const bool expert : {false, true})
      kernels::expect_same_bits(parameters.copy_of(expert), parameters.flat(expert).to(at::kBFloat16), "copy");
    EXPECT_FALSE(parameters.copy_of(true).equal(before)) << "the weights have moved";
  }
}

TEST(DeviceCopies, OfWeightsAreMadeAgainOnlyAfterTheMastersWereGivenAway) {
  RankRun run({}, {}, in_bf16(), parallel::Reduction::kFast);
  nn::Parameters& parameters = run.parameters();
  parameters.refresh();
  const Tensor copy = parameters.copy_of(false);
  copy.fill_(3.0);
  parameters.refresh();
  EXPECT_EQ(copy[0].item<float>(), 3.0f) << "nobody has written the masters";
  parameters.flat(false).fill_(5.0);
  parameters.refresh();
  EXPECT_EQ(copy[0].item<float>(), 5.0f);
  parameters.flat(false).fill_(7.0);
  parameters.copies_are_fresh();
  parameters.refresh();
  EXPECT_EQ(copy[0].item<float>(), 5.0f) << "whoever wrote both has said so";
}

// A load writes the masters through the host; the steps after it compute with what was loaded.
TEST(DeviceCopies, OfWeightsFollowALoad) {
  RankRun source({}, {}, in_bf16(), parallel::Reduction::kFast), target({}, {}, in_bf16(), parallel::Reduction::kFast);
  source.step(0);
  target.step(1);
  train::HostCopies from(source.model()), to(target.model());
  const auto have = train::full_state(source.model(), source.training(), source.model().mesh(), &from);
  const auto take = train::full_state(target.model(), target.training(), target.model().mesh(), &to);
  ASSERT_EQ(have.size(), take.size());
  for (size_t i = 0; i < have.size(); ++i) std::copy(have[i].data.begin(), have[i].data.end(), take[i].data.begin());
  to.write_back();
  target.restore(1);
  EXPECT_EQ(target.step(1).loss, source.step(1).loss);
}

// All tensors of a checkpoint are under way together.
TEST(DeviceCopies, OfACheckpointAreWaitedForOnce) {
  RankRun run({}, {}, in_bf16(), parallel::Reduction::kFast);
  int64_t waits = 0;
  run.model().reads().observe([&](const std::function<void()>& wait) {
    ++waits;
    wait();
  });
  train::HostCopies copies(run.model());
  const auto state = train::full_state(run.model(), run.training(), run.model().mesh(), &copies);
  EXPECT_GT(state.size(), 10u);
  EXPECT_EQ(waits, 1);
  run.step(0);
  EXPECT_EQ(waits, 2) << "and a step once";
}

}  // namespace
}  // namespace conclave::test
