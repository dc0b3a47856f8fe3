// SPDX-License-Identifier: Apache-2.0
// Runs that learn from a frozen one, on one rank and on several.
#include "train/teacher.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/saved_run.h"

namespace conclave::test {
namespace {

using ::testing::HasSubstr;
constexpr auto kCanonical = parallel::Reduction::kCanonical;
constexpr auto kFast = parallel::Reduction::kFast;

// Wider than the students, and of other experts.
LayoutCase large(bool moe = true) {
  return {.name = "Teacher", .change = [moe](train::RunConfig& config) {
            config.model.hidden_size = 48, config.model.num_layers = 1;
            config.model.ffn_hidden_size = 40;
            config.moe.enabled = moe;
            if (!moe) config.moe.balance = {};
          }};
}

LayoutCase student(const SavedRun& teacher, double weight = 0.6, double temperature = 1.5) {
  return {.name = "Student", .change = [where = teacher.where(), weight, temperature](train::RunConfig& config) {
            config.train.distill = {.teacher = where, .weight = weight, .temperature = temperature};
          }};
}

LayoutCase changed(LayoutCase layout_case, std::function<void(train::RunConfig&)> more) {
  layout_case.change = [first = layout_case.change, more](auto& config) { first(config), more(config); };
  return layout_case;
}

// Of each step; the same on all ranks.
std::vector<double> teacher_losses(const comm::Group& world, Layout layout, LayoutCase layout_case,
                                   parallel::Reduction reduction) {
  std::vector<double> losses;
  layout_case.expect = [&](int64_t, const auto& report) { losses.push_back(report.teacher_loss.value_or(-1)); };
  run_layout(world, layout, layout_case, reduction);
  return losses;
}

TEST(Teacher, MovesTheStudentTowardsItself) {
  const SavedRun teacher(large(), 2);
  const auto all = changed(student(teacher, 1, 1), [](auto& config) {
    config.moe.balance = {};
    config.train.steps = 12;
  });
  RankRun run({}, {}, all, kFast);
  double first = 0, last = 0;
  for (int64_t i = 0; i < 12; ++i) {
    const auto report = run.step(0);
    ASSERT_TRUE(report.teacher_loss);
    (i == 0 ? first : last) = *report.teacher_loss;
  }
  EXPECT_GT(first, 0.05);
  EXPECT_LT(last, first / 2);
}

TEST(Teacher, WithoutWeightChangesNothing) {
  const SavedRun teacher(large(), 1);
  const auto with = run_layout({}, {}, student(teacher, 0), kCanonical),
             without = run_layout({}, {}, {.name = "Alone"}, kCanonical);
  expect_same(with, without);
}

TEST(Teacher, ThatIsTheStudentTeachesNothing) {
  for (const auto init : {model::Init::kNormal, model::Init::kMup}) {
    const auto plain = [init](auto& config) {
      config.moe.balance = {};
      config.model.init = init;
      config.model.tie_embeddings = true;
    };
    const SavedRun twin({.name = "Twin", .change = plain}, 0);
    RankRun run({}, {}, changed(student(twin, 1), plain), kFast);
    const auto report = run.step(0);
    EXPECT_EQ(report.teacher_loss, 0.0);
    EXPECT_EQ(report.grad_norm, 0.0);
    EXPECT_GT(report.loss, 1);
  }
}

TEST(Teacher, SeesTheBatchAsAnEvaluationDoes) {
  const SavedRun tight(changed(large(),
                               [](auto& config) {
                                 config.moe.capacity.factor = 0.5, config.moe.capacity.min = 1;
                                 config.moe.capacity.eval_factor = 100.0;
                                 config.moe.router.jitter = 0.3;
                               }),
                       0);
  const SavedRun loose(large(), 0);  // the same weights
  const auto seen = [](const SavedRun& teacher) {
    RankRun run({}, {}, student(teacher), kFast);
    return run.training().teacher()->look_at(layout_batch(run.config(), false, 7, 0)).hidden_TD;
  };
  EXPECT_TRUE(seen(tight).equal(seen(loose))) << "nothing is drawn or dropped";
}

// Saved in the middle of a schedule it goes on with the experts of its last step.
TEST(Teacher, HasTheExpertsOfTheStepItWasSavedAt) {
  const auto with = [](moe::TopK top_k) {
    return changed(large(), [top_k](auto& config) {
      config.moe.top_k = top_k;
      config.moe.router.norm_topk_prob = false;
    });
  };
  const SavedRun scheduled(with(std::vector<moe::TopKPhase>{{.until = 2, .k = 4}, {.k = 1}}), 1), four(with(4), 1);
  const auto seen = [](const SavedRun& teacher) {
    RankRun run({}, {}, student(teacher), kFast);
    return run.training().teacher()->look_at(layout_batch(run.config(), false, 7, 0)).hidden_TD;
  };
  EXPECT_TRUE(seen(scheduled).equal(seen(four)));
}

// What acts in training alone may change when a run goes on.
TEST(ConfigRecord, OptionsOfTrainingAreNotTheModel) {
  const auto config = layout_config({.name = "Plain"});
  auto changed = config;
  changed.moe.experts.dropout = 0.2;
  changed.moe.router.default_moe = moe::DefaultMoeConfig{.decay = 0.5};
  changed.moe.router.jitter = 0.1;
  const auto one = train::config_record(config), other = train::config_record(changed);
  EXPECT_EQ(one.model, other.model);
  EXPECT_NE(one.training, other.training);
  const auto [model, moe] = train::recorded_model(other, "here");
  EXPECT_EQ(moe.experts.dropout, 0.2);
  EXPECT_EQ(moe.router.default_moe.value().decay, 0.5);
}

TEST(TeacherRanks, LayoutsKeepTheirPromises) {
  for (const bool moe : {true, false}) {
    const SavedRun teacher(large(moe), 2);
    const auto taught = student(teacher);
    const Alone alone(taught);
    for (const Layout layout : {Layout{2, 1}, Layout{2, 2}, Layout{4, 4}}) {
      run_ranks(layout.ranks(), [&](const comm::Group& world) { expect_layout_promise(world, layout, taught, alone); });
    }
    const auto losses = teacher_losses({}, {}, taught, kCanonical);
    run_ranks(2, [&](const comm::Group& world) {
      EXPECT_EQ(teacher_losses(world, {.dp = 2, .ep = 2, .zero = 1}, taught, kCanonical), losses);
    });
  }
}

TEST(TeacherRanks, ExecutorsKeepTheirPromises) {
  const SavedRun teacher(large(), 2);
  const auto taught = student(teacher);
  const Alone alone(taught);
  run_ranks(2, [&](const comm::Group& world) {
    expect_executor_promises(world, {.dp = 2, .ep = 2, .zero = 1}, taught, alone);
  });
}

TEST(TeacherRanks, VocabulariesOverRanksAreCloseToOne) {
  // 31: an uneven vocabulary.
  const auto odd = [](auto& config) { config.model.vocab_size = 31; };
  for (const bool tied : {false, true}) {
    const SavedRun teacher(changed(large(), odd), 2);
    const auto taught = changed(student(teacher), [&](auto& config) {
      odd(config);
      config.model.tie_embeddings = tied;
    });
    const auto alone = run_layout({}, {}, taught, kFast);
    const auto losses = teacher_losses({}, {}, taught, kFast);
    for (const Layout layout : {Layout{.tp = 2},
                                {.tp = 2, .sequence_parallel = false},
                                {.dp = 2, .ep = 4, .zero = 1, .tp = 2},
                                {.dp = 2, .ep = 2, .tp = 2, .etp = 2}}) {
      run_ranks(layout.ranks(), [&](const comm::Group& world) {
        expect_close(run_layout(world, layout, taught, kFast), alone);
        EXPECT_NEAR(teacher_losses(world, layout, taught, kFast)[0] / losses[0], 1, 1e-5);
      });
    }
  }
}

TEST(Teacher, IsTheSameOnTheDevicePath) {
  const SavedRun teacher(large(), 2);
  auto fp32 = changed(student(teacher), [](auto&) {});
  const auto host = run_layout({}, {}, fp32, kFast);
  fp32.device = model::DevicePath{};
  expect_close(run_layout({}, {}, fp32, kFast), host);
  // Heads of a width that bf16 takes.
  const auto even = [](auto& config) { config.model.hidden_size = 64; };
  const SavedRun wide(changed(large(), even), 2);
  const auto bf16 = changed(student(wide), [](auto& config) { config.train.precision = "bf16"; });
  const double exact = teacher_losses({}, {}, student(teacher), kFast)[0];
  EXPECT_NEAR(teacher_losses({}, {}, fp32, kFast)[0] / exact, 1, 1e-5);
  EXPECT_NEAR(teacher_losses({}, {}, bf16, kFast)[0] / teacher_losses({}, {}, student(wide), kFast)[0], 1, 0.05);
}

TEST(TeacherRanks, ARunGoesOnBitForBitAfterAResume) {
  const SavedRun teacher(large(), 2);
  const auto taught = student(teacher);
  const data::TemporaryDirectory directory;
  std::map<std::string, std::string> expected;
  run_ranks(2, [&](const comm::Group& world) {
    const Layout layout{.dp = 2, .ep = 2, .zero = 1};
    RankRun whole(world, layout, taught, kCanonical);
    for (int64_t i = 0; i < 4; ++i) whole.step(i);
    const auto log = make_silent_log();
    Failpoints none;
    checkpoint::Store store(world, directory / "run", {.directory = {.lock = {0.05, 0.5}}}, none, *log);
    {
      RankRun first(world, layout, taught, kCanonical);
      for (int64_t i = 0; i < 2; ++i) first.step(i);
      checkpoint::SaveContents contents;
      contents.step = 2;
      contents.config = train::config_record(first.config());
      store.save(contents, first.state());
    }
    RankRun second(world, layout, taught, kCanonical);
    checkpoint::ResumeRequest request;
    request.config = train::config_record(second.config());
    const auto manifest = store.resume(request, second.state());
    ASSERT_TRUE(manifest);
    for (const auto& tensor : manifest->tensors)
      EXPECT_EQ(std::count(tensor.shape.begin(), tensor.shape.end(), 48), 0) << "of the teacher: " << tensor.key.name;
    second.restore(2);
    for (int64_t i = 2; i < 4; ++i) second.step(i);
    const auto got = second.all_state(), all = whole.all_state();
    EXPECT_EQ(got.size(), all.size());
    for (const auto& [name, bytes] : all) EXPECT_TRUE(got.at(name) == bytes) << name;
  });
}

std::string refusal(const LayoutCase& layout_case, Layout layout = {}) {
  std::string text;
  run_ranks(layout.ranks(), [&](const comm::Group& world) {
    try {
      RankRun(world, layout, layout_case, kFast);
    } catch (const Error& error) {
      if (world.rank() == 0) text = error.what();
    }
  });
  return text;
}

TEST(TeacherRanks, ThatDoesNotFitIsRefused) {
  const SavedRun teacher(large(), 1, {{"tokenizer", "00aa"}});
  EXPECT_THAT(refusal(changed(student(teacher), [](auto& config) { config.model.vocab_size = 33; })),
              HasSubstr("has a vocabulary of 32 tokens, this run one of 33"));
  const auto bytes = changed(student(teacher), [](auto& config) { config.data.tokenizer = "bytes"; });
  EXPECT_THAT(refusal(bytes), HasSubstr("was trained with another tokenizer (hash 00aa"));
  EXPECT_THAT(refusal(bytes, {.dp = 2}), HasSubstr("another tokenizer"));
  const auto nowhere = changed(student(teacher), [](auto& config) { config.train.distill->teacher += "/none"; });
  EXPECT_THAT(refusal(nowhere), HasSubstr("train.distill.teacher: "));
  EXPECT_THAT(refusal(nowhere), HasSubstr("is neither a run directory with checkpoints nor a checkpoint"));
  const SavedRun few(changed(large(), [](auto& config) { config.moe.num_experts = int64_t{2}; }), 1);
  EXPECT_THAT(refusal(student(few), {.dp = 4, .ep = 4}), HasSubstr("cannot run in this run's layout"));
  const SavedRun brief(changed(large(), [](auto& config) { config.model.max_seq_len = config.data.seq_len = 8; }), 1);
  EXPECT_THAT(refusal(student(brief)), HasSubstr("made for at most 8"));
}

TEST(Teacher, AnotherOneThanBeforeIsRefused) {
  const SavedRun one(large(), 1), two(large(), 2);
  RankRun of_one({}, {}, student(one), kFast), of_two({}, {}, student(two), kFast);
  const auto& first = *of_one.training().teacher();
  EXPECT_NO_THROW(train::require_same_teacher(first.identity(), first));
  try {
    train::require_same_teacher(first.identity(), *of_two.training().teacher());
    FAIL() << "no refusal";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("this run has learned from " + one.where()));
    EXPECT_THAT(error.what(), HasSubstr("is at step 2"));
  }
}

}  // namespace
}  // namespace conclave::test
