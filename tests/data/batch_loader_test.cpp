// SPDX-License-Identifier: Apache-2.0
#include "data/batch_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <map>

#include "core/error.h"
#include "token_files.h"

namespace conclave::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr int64_t kVocab = int64_t{1} << 20;

LoaderOptions options_for(const std::vector<SourceConfig>& sources, int64_t seq_len, int64_t global,
                          int64_t micro = 1) {
  LoaderOptions options;
  options.data.train = sources;
  options.data.seq_len = seq_len;
  options.data.seed = 3;
  options.expected = {kVocab, "abcd"};
  options.global_batch_size = global;
  options.micro_batch_size = micro;
  return options;
}

bool same(const Batch& a, const Batch& b) {
  return a.sequences == b.sequences && a.length == b.length && a.tokens == b.tokens && a.targets == b.targets &&
         a.loss_mask == b.loss_mask && a.segment_ids == b.segment_ids && a.position_ids == b.position_ids &&
         a.global_token_ids == b.global_token_ids && a.index == b.index;
}

class BatchLoaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    write_counting(directory_ / "a", 16 * 8 + 1);
    write_counting(directory_ / "b", 1000);
  }
  std::vector<SourceConfig> both() const { return {{"a", directory_ / "a", 0.3}, {"b", directory_ / "b", 0.7}}; }
  TemporaryDirectory directory_;
};

TEST_F(BatchLoaderTest, EveryTokenIsAnInputOncePerEpochAndEpochsDiffer) {
  auto options = options_for({{"a", directory_ / "a", 1.0}}, 8, 4, 2);  // 16 samples: 4 steps are an epoch
  BatchLoader loader(options);
  std::vector<std::vector<int32_t>> orders;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::map<int32_t, int> seen;
    auto& order = orders.emplace_back();
    for (int64_t step = epoch * 4; step < epoch * 4 + 4; ++step) {
      for (const Batch& batch : loader.take(step)) {
        for (const int32_t token : batch.tokens) ++seen[token], order.push_back(token);
        for (size_t i = 0; i < batch.tokens.size(); ++i) EXPECT_EQ(batch.targets[i], batch.tokens[i] + 1);
      }
    }
    EXPECT_EQ(seen.size(), 128u);
    for (const auto& [token, times] : seen) EXPECT_EQ(times, 1) << token;
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
  EXPECT_DOUBLE_EQ(loader.epochs(40)[0], 2.5);
}

TEST_F(BatchLoaderTest, TokensLeftOverByTheCutAreSeenInOtherEpochs) {
  BatchLoader loader(options_for({{"b", directory_ / "b", 1.0}}, 64, 15));  // 999 = 15 * 64 + 39
  std::map<int32_t, int> seen;
  for (int64_t epoch = 0; epoch < 40; ++epoch) {
    std::map<int32_t, int> now;
    for (const Batch& batch : loader.take(epoch))
      for (const int32_t token : batch.tokens) ++now[token], ++seen[token];
    EXPECT_EQ(now.size(), 15u * 64);  // none twice within an epoch
  }
  EXPECT_GT(seen.size(), 990u);
}

TEST_F(BatchLoaderTest, FillsEveryFieldOfABatch) {
  BatchLoader loader(options_for(both(), 8, 6, 2));
  const auto batches = loader.take(5);
  ASSERT_EQ(batches.size(), 3u);
  for (int64_t m = 0; m < 3; ++m) {
    const Batch& batch = batches[static_cast<size_t>(m)];
    EXPECT_EQ(batch.index, m);
    EXPECT_EQ(batch.sequences, 2);
    EXPECT_EQ(batch.length, 8);
    ASSERT_EQ(batch.tokens.size(), 16u);
    for (int64_t i = 0; i < 16; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_EQ(batch.global_token_ids[at], (5 * 6 + m * 2) * 8 + i);
      EXPECT_EQ(batch.position_ids[at], i % 8);
      EXPECT_EQ(batch.segment_ids[at], 0);
      EXPECT_EQ(batch.loss_mask[at], 1.0f);
    }
  }
}

TEST_F(BatchLoaderTest, BatchesAreTheSameOnAnyNumberOfRanks) {
  for (const bool document_mask : {false, true}) {
    auto options = options_for(both(), 8, 16, 2);
    options.data.document_mask = document_mask;
    BatchLoader whole(options);
    for (const int64_t dp : {2, 4, 8}) {
      for (int64_t step = 0; step < 6; ++step) {
        const auto expected = whole.take(step);
        std::vector<Batch> together;
        for (int64_t rank = 0; rank < dp; ++rank) {
          options.dp_size = dp;
          options.dp_rank = rank;
          for (auto& batch : BatchLoader(options).take(step)) together.push_back(std::move(batch));
        }
        ASSERT_EQ(together.size(), expected.size());
        for (size_t m = 0; m < expected.size(); ++m)
          EXPECT_TRUE(same(together[m], expected[m])) << dp << " " << step << " " << m;
      }
    }
  }
}

TEST_F(BatchLoaderTest, ResumesAtAnyStepAndGoesBack) {
  const auto options = options_for(both(), 8, 4);
  BatchLoader straight(options);
  std::vector<std::vector<Batch>> steps;
  for (int64_t step = 0; step < 40; ++step) steps.push_back(straight.take(step));
  rc::check([&] {
    BatchLoader resumed(options);
    for (const auto step : *rc::gen::container<std::vector<int64_t>>(5, rc::gen::inRange<int64_t>(0, 40))) {
      const auto batches = resumed.take(step);
      for (size_t m = 0; m < batches.size(); ++m) RC_ASSERT(same(batches[m], steps[static_cast<size_t>(step)][m]));
    }
  });
  EXPECT_EQ(straight.take(int64_t{1} << 40).size(), 4u);  // far away costs no more
}

TEST_F(BatchLoaderTest, MicroBatchSizeDoesNotChangeTheSamplesOfAStep) {
  BatchLoader ones(options_for(both(), 8, 8, 1)), fours(options_for(both(), 8, 8, 4));
  std::vector<int32_t> a, b;
  for (const auto& batch : ones.take(3)) a.insert(a.end(), batch.tokens.begin(), batch.tokens.end());
  for (const auto& batch : fours.take(3)) b.insert(b.end(), batch.tokens.begin(), batch.tokens.end());
  EXPECT_EQ(a, b);
}

TEST_F(BatchLoaderTest, DocumentMaskSeparatesDocumentsAndLeavesTheirSeamsOutOfTheLoss) {
  write_documents(directory_ / "g", golden_documents(), 16);  // 5 6 7 0 | 8 9 0 | 10 11 12 13 14 0 | 15 0
  auto options = options_for({{"g", directory_ / "g", 1.0}}, 14, 1);
  options.data.document_mask = true;
  const auto batches = BatchLoader(options).take(0);
  const Batch& batch = batches[0];
  EXPECT_THAT(batch.tokens, ElementsAre(5, 6, 7, 0, 8, 9, 0, 10, 11, 12, 13, 14, 0, 15));
  EXPECT_THAT(batch.targets, ElementsAre(6, 7, 0, 8, 9, 0, 10, 11, 12, 13, 14, 0, 15, 0));
  EXPECT_THAT(batch.segment_ids, ElementsAre(0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3));
  EXPECT_THAT(batch.position_ids, ElementsAre(0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4, 5, 0));
  EXPECT_THAT(batch.loss_mask, ElementsAre(1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1));
}

TEST_F(BatchLoaderTest, DocumentMaskLooksOneTokenBeyondTheWindow) {
  write_documents(directory_ / "g", {{5, 6, 7, 0}, {8, 9, 10, 11, 0}}, 16);
  auto options = options_for({{"g", directory_ / "g", 1.0}}, 4, 2, 2);  // windows 5 6 7 0 (8) and 8 9 10 11 (0)
  options.data.document_mask = true;
  const auto batches = BatchLoader(options).take(0);
  const size_t first = batches[0].tokens[0] == 5 ? 0 : 4, second = 4 - first;
  EXPECT_EQ(batches[0].loss_mask[first + 3], 0.0f);
  EXPECT_EQ(batches[0].loss_mask[second + 3], 1.0f);
  EXPECT_EQ(batches[0].segment_ids[second], 0);
  EXPECT_EQ(batches[0].position_ids[second + 3], 3);
}

TEST_F(BatchLoaderTest, MixesSourcesByWeight) {
  BatchLoader loader(options_for(both(), 8, 10));
  EXPECT_NEAR(loader.epochs(1000)[0], 300.0 / 16, 1e-12);
  EXPECT_NEAR(loader.epochs(1000)[1], 700.0 / 124, 1e-12);
  EXPECT_DOUBLE_EQ(loader.mixture().share(0), 0.3);
}

TEST_F(BatchLoaderTest, AnErrorOfTheReadingThreadArrivesAsItWas) {
  BatchLoader loader(options_for({{"b", directory_ / "b", 1.0}}, 8, 4));
  (void)loader.take(0);
  (void)loader.take(1);
  fs::resize_file(directory_ / "b.bin", 10);
  // Step 2 may have been read before the file shrank, step 3 cannot.
  try {
    (void)loader.take(2);
    (void)loader.take(3);
    FAIL() << "read from a truncated file";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("b.bin"));
  }
  EXPECT_THROW((void)loader.take(3), DataError);  // and again
  EXPECT_THROW((void)loader.take(9), DataError);
}

TEST_F(BatchLoaderTest, StopsWhileReadingAhead) {
  for (int i = 0; i < 200; ++i) {
    BatchLoader loader(options_for(both(), 8, 64));
    (void)loader.take(i);
  }
}

TEST_F(BatchLoaderTest, FingerprintNamesWhatThePositionDependsOn) {
  const auto base = options_for(both(), 8, 4);
  const auto fingerprint = BatchLoader(base).fingerprint();
  EXPECT_THAT(fingerprint, HasSubstr("a weight 0.3"));
  auto other = base;
  other.global_batch_size = 8;
  other.dp_size = 2;
  EXPECT_EQ(BatchLoader(other).fingerprint(), fingerprint);
  for (const auto& change : std::vector<std::function<void(LoaderOptions&)>>{
           [](auto& o) { o.data.seed = 4; }, [](auto& o) { o.data.seq_len = 9; },
           [](auto& o) { o.data.train[0].weight = 0.4; }, [](auto& o) { o.data.train[0].name = "c"; },
           [](auto& o) { std::swap(o.data.train[0], o.data.train[1]); },
           [](auto& o) { o.data.train[0].path = o.data.train[1].path; }}) {
    auto changed = base;
    change(changed);
    EXPECT_NE(BatchLoader(changed).fingerprint(), fingerprint);
  }
}

struct Refusal {
  std::string name;
  std::function<void(const TemporaryDirectory&, LoaderOptions&)> change;
  ExitCode code;
  std::vector<std::string> told;
};
void PrintTo(const Refusal& one, std::ostream* out) { *out << one.name; }

class BatchLoaderRefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(BatchLoaderRefusalTest, SaysWhatWhereAndWhatToDo) {
  const TemporaryDirectory directory;
  write_counting(directory / "a", 100);
  auto options = options_for({{"first", directory / "a", 1.0}}, 8, 4, 2);
  GetParam().change(directory, options);
  try {
    BatchLoader loader(options);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), GetParam().code);
    for (const auto& told : GetParam().told) EXPECT_THAT(error.what(), HasSubstr(told));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BatchLoaderRefusalTest,
    ::testing::Values(
        Refusal{"no_source", [](auto&, auto& o) { o.data.train.clear(); }, ExitCode::kConfig, {"data.train is empty"}},
        Refusal{"missing_file",
                [](auto& d, auto& o) { o.data.train[0].path = d / "nothing"; },
                ExitCode::kData,
                {"nothing.idx", "no such file"}},
        Refusal{"two_of_one_name",
                [](auto&, auto& o) { o.data.train.push_back(o.data.train[0]); },
                ExitCode::kConfig,
                {"'first'", "unique"}},
        Refusal{"zero_weights", [](auto&, auto& o) { o.data.train[0].weight = 0; }, ExitCode::kConfig, {"add up to 0"}},
        Refusal{"bad_weights_before_missing_files",
                [](auto& d, auto& o) {
                  o.data.train[0].weight = -1;
                  o.data.train[0].path = d / "nothing";
                },
                ExitCode::kConfig,
                {"data.train[0].weight"}},
        Refusal{"smaller_than_a_sample",
                [](auto&, auto& o) { o.data.seq_len = 100; },
                ExitCode::kData,
                {"a.bin", "'first'", "100 tokens", "needs 101", "data.seq_len"}},
        Refusal{"other_tokenizer",
                [](auto&, auto& o) { o.expected.tokenizer_hash = "ef01"; },
                ExitCode::kData,
                {"a.json", "abcd", "ef01", "data.tokenizer"}},
        Refusal{"larger_vocabulary",
                [](auto&, auto& o) { o.expected.vocab_size = 1000; },
                ExitCode::kData,
                {"a.json", "1048576", "1000", "model.vocab_size"}},
        Refusal{"token_beyond_vocabulary",
                [](auto& d, auto& o) {
                  fs::remove(d / "a.json");
                  o.expected.vocab_size = 99;
                },
                ExitCode::kData,
                {"a.bin", "byte 396", "token 99", "document 0"}},
        Refusal{"packing",
                [](auto&, auto& o) { o.data.packing = "best-fit"; },
                ExitCode::kConfig,
                {"data.packing", "best-fit"}},
        Refusal{"seq_len", [](auto&, auto& o) { o.data.seq_len = 0; }, ExitCode::kConfig, {"data.seq_len"}},
        Refusal{"batch_not_divisible",
                [](auto&, auto& o) { o.dp_size = 3; },
                ExitCode::kConfig,
                {"train.global_batch_size 4"}},
        Refusal{"micro_larger",
                [](auto&, auto& o) { o.micro_batch_size = 8; },
                ExitCode::kConfig,
                {"train.micro_batch_size 8"}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::data
