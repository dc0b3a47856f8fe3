// SPDX-License-Identifier: Apache-2.0
// Runs that begin with the weights of earlier ones: the same function at the first step, whatever the layout.
#include "train/initial_weights.h"

#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>

#include "checkpoint/store.h"
#include "core/error.h"
#include "core/log.h"
#include "data/token_files.h"
#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/trainer.h"

namespace conclave::test {
namespace {

using ::testing::HasSubstr;
constexpr auto kFast = parallel::Reduction::kFast;

// Width 24 everywhere, nothing beside the routed experts, no loss but that of the tokens.
LayoutCase model_case(const std::function<void(train::RunConfig&)>& change) {
  return {.name = "InitialWeights", .change = [change](train::RunConfig& config) {
            config.moe.num_shared_experts = 0;
            config.moe.balance = {};
            config.moe.num_experts = int64_t{4};
            config.moe.top_k = 2;
            config.moe.router.norm_topk_prob = true;
            config.model.ffn_hidden_size = 24;
            change(config);
          }};
}

LayoutCase dense() {
  // The twin of one expert for each token, so that its FFN has an expert's width.
  return model_case([](auto& config) { config.moe.enabled = false, config.moe.top_k = 1; });
}

class Runs {
 public:
  // Trains a run on one rank and saves it; returns its loss on the batches of step 7.
  double train(const LayoutCase& layout_case, const std::string& name, int64_t steps) {
    RankRun run(comm::Group(), {}, layout_case, kFast);
    for (int64_t i = 0; i < steps; ++i) run.step(i);
    const auto log = make_silent_log();
    Failpoints none;
    checkpoint::Store store(comm::Group(), where(name), {.directory = {.lock = {0.05, 0.5}}}, none, *log);
    checkpoint::SaveContents contents;
    contents.step = steps;
    store.save(contents, run.state());
    states_[name] = run.all_state();
    return run.step(7).loss;
  }
  std::string where(const std::string& name) const { return directory_ / name; }
  const std::map<std::string, std::string>& state(const std::string& name) const { return states_.at(name); }

 private:
  data::TemporaryDirectory directory_;
  std::map<std::string, std::map<std::string, std::string>> states_;
};

// What begins with `from`: its state before the first step, its loss on the batches of step 7 and what it said.
struct Begun {
  std::map<std::string, std::string> state;
  double loss = 0;
};

LayoutCase starting_from(const config::TextOrList& from, LayoutCase layout_case) {
  layout_case.change = [change = layout_case.change, from](auto& config) {
    change(config);
    config.model.init_from = from;
  };
  return layout_case;
}

Begun begin(const comm::Group& world, Layout layout, const LayoutCase& layout_case, const config::TextOrList& from) {
  RankRun run(world, layout, starting_from(from, layout_case), kFast);
  const auto log = make_silent_log();
  train::take_initial_weights(run.config(), world, run.state(), *log);
  Begun begun{run.all_state(), 0};
  begun.loss = run.step(7).loss;
  return begun;
}

// Of an evaluation of a batch of step 7 by what begins with `from`.
Tensor last_hidden(const LayoutCase& layout_case, const config::TextOrList& from) {
  RankRun run({}, {}, starting_from(from, layout_case), kFast);
  const auto log = make_silent_log();
  train::take_initial_weights(run.config(), {}, run.state(), *log);
  const Batch batch = layout_batch(run.config(), false, 7, 0);
  nn::Frame frame = run.model().frame(batch, nullptr);
  for (const auto& stage : run.model().stages()) stage->forward(frame);
  return run.model().hidden(frame).clone();
}

std::string refusal(const LayoutCase& layout_case, const config::TextOrList& from) {
  try {
    begin(comm::Group(), {}, layout_case, from);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(InitialWeights, OfTheSameModelAreTaken) {
  Runs runs;
  const auto moe = model_case([](auto& config) { config.moe.balance.bias.update_rate = 0.01; });
  const double loss = runs.train(moe, "first", 2);
  const auto begun = begin(comm::Group(), {}, moe, runs.where("first"));
  EXPECT_EQ(begun.loss, loss);
  for (const auto& [name, bytes] : runs.state("first")) {
    if (name.ends_with(" adam_m") || name.ends_with(" adam_v")) {
      EXPECT_EQ(begun.state.at(name), std::string(bytes.size(), '\0')) << name << " begins anew";
    } else if (name.find("counts") == std::string::npos) {
      EXPECT_TRUE(begun.state.at(name) == bytes) << name;
    }
  }
}

// What a dense run may become with its function unchanged.
std::map<std::string, std::function<void(train::RunConfig&)>> upcycled() {
  return {
      {"plain", [](auto&) {}},
      {"merged",
       [](auto& config) {
         config.moe.router = {};
         config.moe.router.type = "lory";
         config.moe.router.lory.emplace().segment = 4;
         config.moe.top_k = 1, config.moe.balance = {};
       }},
      {"scaled sigmoid",
       [](auto& config) {
         config.moe.router.score = moe::Score::kSigmoid;
         config.moe.router.routed_scaling_factor = 2.5;
       }},
      {"over picks",
       [](auto& config) { config.moe.router.score_before_topk = config.moe.router.norm_topk_prob = false; }},
      {"slices", [](auto& config) { config.moe.granularity = 3; }},
      {"slices of one copy", [](auto& config) { config.moe.granularity = 2, config.moe.top_k = 1; }},
      {"scaled slices",
       [](auto& config) { config.moe.granularity = 2, config.moe.router.routed_scaling_factor = 1.5; }},
      {"some layers dense",
       [](auto& config) {
         config.moe.layers = moe::LayerPattern{1, 1};
       }},
  };
}

TEST(InitialWeights, OfADenseRunKeepItsFunction) {
  Runs runs;
  const double loss = runs.train(dense(), "dense", 2);
  const Tensor hidden = last_hidden(dense(), runs.where("dense"));
  for (const auto& [name, change] : upcycled()) {
    SCOPED_TRACE(name);
    EXPECT_NEAR(begin(comm::Group(), {}, model_case(change), runs.where("dense")).loss / loss, 1, 1e-6);
    const Tensor difference = last_hidden(model_case(change), runs.where("dense")) - hidden;
    EXPECT_LE(difference.norm().item<double>(), 1e-6 * hidden.norm().item<double>());
  }
}

TEST(InitialWeights, OfADenseRunLeaveItsMomentsBehind) {
  Runs runs;
  runs.train(dense(), "dense", 2);
  for (const auto& [name, change] : upcycled()) {
    const auto begun = begin(comm::Group(), {}, model_case(change), runs.where("dense"));
    int64_t moments = 0;
    for (const auto& [key, bytes] : begun.state) {
      if (!key.ends_with(" adam_m") && !key.ends_with(" adam_v")) continue;
      EXPECT_EQ(bytes, std::string(bytes.size(), '\0')) << name << ": " << key;
      ++moments;
    }
    EXPECT_GT(moments, 50) << name;
  }
}

TEST(InitialWeights, AListOfOneDenseRunIsThatRun) {
  Runs runs;
  runs.train(dense(), "dense", 2);
  for (const auto& change : {upcycled().at("plain"), upcycled().at("slices")}) {
    const auto one = begin(comm::Group(), {}, model_case(change), runs.where("dense")),
               list = begin(comm::Group(), {}, model_case(change), std::vector<std::string>{runs.where("dense")});
    EXPECT_TRUE(list.state == one.state);
    EXPECT_EQ(list.loss, one.loss);
  }
}

TEST(InitialWeights, CopiesAreTheDenseNetworkCutIntoSlices) {
  Runs runs;
  runs.train(dense(), "dense", 1);
  const auto begun =
      begin(comm::Group(), {}, model_case([](auto& config) { config.moe.granularity = 2; }), runs.where("dense"));
  const auto& from = runs.state("dense");
  constexpr size_t D = 32, F = 24, kSlices = 2;
  const auto ffn = [&](const std::string& which) {
    return numbers(from.at("layers.1.ffn." + which + ".weight param"));
  };
  const auto gate = ffn("gate"), down = ffn("down");
  for (const size_t expert : {0, 1, 6, 7}) {
    const auto of = [&](const std::string& which) {
      return numbers(begun.state.at(fmt::format("layers.1.moe.experts.{}.{}.weight param", expert, which)));
    };
    const size_t slice = expert % kSlices, width = F / kSlices;
    const auto own = of("gate"), own_down = of("down");
    for (size_t i = 0; i < width * D; ++i) ASSERT_EQ(own[i], gate[slice * width * D + i]) << expert;
    for (size_t d = 0; d < D; ++d)
      for (size_t f = 0; f < width; ++f)
        ASSERT_EQ(own_down[d * width + f], 2 * down[d * F + slice * width + f]) << expert;
  }
  const auto router = numbers(begun.state.at("layers.1.moe.router.weight param"));
  for (size_t row = 0; row < 8; ++row)
    for (size_t d = 0; d < D; ++d) ASSERT_EQ(router[row * D + d], router[(row - row % kSlices) * D + d]);
  EXPECT_NE(router[0], router[2 * D]) << "copies are wanted differently";
}

TEST(InitialWeights, OfSeveralDenseRunsAreTheirMeanAndTheirNetworks) {
  Runs runs;
  runs.train(dense(), "a", 1);
  runs.train(dense(), "b", 3);
  const std::vector<std::string> both = {runs.where("a"), runs.where("b")};
  const auto begun = begin(comm::Group(), {}, model_case([](auto&) {}), both);
  const auto &a = runs.state("a"), &b = runs.state("b");
  const std::string q = "layers.0.attention.q.weight param";
  const auto mean = numbers(begun.state.at(q)), qa = numbers(a.at(q)), qb = numbers(b.at(q));
  for (size_t i = 0; i < mean.size(); ++i) ASSERT_NEAR(mean[i], (qa[i] + qb[i]) / 2, 1e-7);
  for (const int64_t expert : {0, 1, 2, 3})
    EXPECT_TRUE(begun.state.at(fmt::format("layers.0.moe.experts.{}.up.weight param", expert)) ==
                (expert < 2 ? a : b).at("layers.0.ffn.up.weight param"))
        << expert;
}

TEST(InitialWeightsRanks, AreTheSameInEveryLayout) {
  Runs runs;
  runs.train(dense(), "dense", 1);
  const auto target = model_case([](auto& config) { config.moe.granularity = 2; });
  const auto alone = begin(comm::Group(), {}, target, runs.where("dense"));
  const std::vector<Layout> layouts = {
      {.dp = 2, .ep = 2}, {.dp = 2, .zero = 1}, {.tp = 2}, {.tp = 2, .etp = 2}, {.dp = 2, .ep = 4, .tp = 2}};
  for (const auto& layout : layouts) {
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      const auto begun = begin(world, layout, target, runs.where("dense"));
      for (const auto& [name, bytes] : alone.state)
        EXPECT_TRUE(begun.state.at(name) == bytes) << name << " tp " << layout.tp << " ep " << layout.ep;
    });
  }
}

TEST(InitialWeights, ThatDoNotFitAreRefusedWithTheirSizes) {
  Runs runs;
  runs.train(dense(), "dense", 1);
  runs.train(model_case([](auto&) {}), "moe", 1);
  const auto from = runs.where("dense");
  EXPECT_THAT(refusal(model_case([](auto& config) { config.model.vocab_size = 31; }), from),
              HasSubstr("embedding.weight is [32, 32] there"));
  EXPECT_THAT(refusal(model_case([](auto& config) { config.moe.expert_hidden_size = 12; }), from),
              HasSubstr("layers.0.ffn.gate.weight is [24, 32] there"));
  const std::vector<int64_t> widths{24, 24, 16, 24};
  EXPECT_THAT(refusal(model_case([&](auto& config) { config.moe.expert_hidden_size = widths; }), from),
              HasSubstr("layers.0.ffn.gate.weight is [24, 32] there"));
  EXPECT_THAT(refusal(model_case([](auto& config) { config.moe.num_shared_experts = 1; }), from),
              HasSubstr("shared experts can only come from a run that has them"));
  EXPECT_THAT(refusal(model_case([](auto& config) { config.model.num_layers = 1; }), from),
              HasSubstr("have no place in this run, the first is layers.1."));
  EXPECT_THAT(refusal(model_case([](auto& config) { config.moe.num_experts = int64_t{5}; }),
                      std::vector<std::string>{from, from}),
              HasSubstr("2 runs cannot give layer 0 equally many of its 5 experts"));
  EXPECT_THAT(refusal(model_case([](auto&) {}), std::vector<std::string>{runs.where("moe"), runs.where("moe")}),
              HasSubstr("several runs must be dense"));
}

}  // namespace
}  // namespace conclave::test
