// SPDX-License-Identifier: Apache-2.0
#include "data/validation_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "token_files.h"

namespace conclave::data {
namespace {

using ::testing::ElementsAre;

LoaderOptions options_for(const std::string& path, int64_t seq_len, int64_t micro) {
  LoaderOptions options;
  options.data.valid = {{"v", path, 1.0}};
  options.data.seq_len = seq_len;
  options.micro_batch_size = micro;
  options.expected = {int64_t{1} << 20, ""};
  return options;
}

TEST(ValidationLoaderTest, ReadsInOrderAndPadsTheLastSample) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 15);  // 14 targets: samples of 4, 4, 4 and 2
  ValidationLoader loader(options_for(directory / "x", 4, 3), 10);
  ASSERT_EQ(loader.batches(0), 2);
  const Batch first = loader.batch(0, 0), second = loader.batch(0, 1);
  EXPECT_THAT(first.tokens, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11));
  EXPECT_THAT(second.tokens, ElementsAre(12, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(second.targets, ElementsAre(13, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(second.loss_mask, ElementsAre(1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(second.segment_ids, ElementsAre(0, 0, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  EXPECT_EQ(second.sequences, 3);
  EXPECT_EQ(second.index, 1);
}

TEST(ValidationLoaderTest, EveryTargetCountsOnceWhateverTheRanks) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 101);
  for (const int64_t dp : {1, 2, 3, 4}) {
    std::vector<int> seen(101);
    std::vector<int64_t> numbers;
    for (int64_t rank = 0; rank < dp; ++rank) {
      auto options = options_for(directory / "x", 8, 2);
      options.dp_rank = rank;
      options.dp_size = dp;
      const ValidationLoader loader(options, 100);
      EXPECT_EQ(loader.batches(0), 7);
      EXPECT_EQ(loader.batches_per_rank(0), (7 + dp - 1) / dp);  // the same on all ranks
      for (int64_t i = 0; i < loader.batches_per_rank(0); ++i) {
        const Batch batch = loader.batch(0, i);
        EXPECT_EQ(batch.sequences, 2);
        numbers.push_back(batch.index);
        for (size_t t = 0; t < batch.tokens.size(); ++t)
          if (batch.loss_mask[t] != 0) ++seen[static_cast<size_t>(batch.targets[t])];
      }
    }
    EXPECT_EQ(seen[0], 0);
    for (size_t t = 1; t < seen.size(); ++t) EXPECT_EQ(seen[t], 1) << dp << " " << t;
    std::sort(numbers.begin(), numbers.end());
    EXPECT_EQ(std::adjacent_find(numbers.begin(), numbers.end()), numbers.end());
  }
}

TEST(ValidationLoaderTest, StopsAtTheAskedNumberOfBatches) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 1001);
  for (const int64_t dp : {1, 2, 4}) {
    auto options = options_for(directory / "x", 10, 2);
    options.dp_size = dp;
    std::vector<int32_t> tokens;
    for (options.dp_rank = 0; options.dp_rank < dp; ++options.dp_rank) {
      const ValidationLoader loader(options, 3);
      for (int64_t i = 0; i < loader.batches_per_rank(0); ++i) {
        const Batch batch = loader.batch(0, i);
        for (size_t t = 0; t < batch.tokens.size(); ++t)
          if (batch.segment_ids[t] >= 0) tokens.push_back(batch.tokens[t]);
      }
    }
    std::sort(tokens.begin(), tokens.end());
    ASSERT_EQ(tokens.size(), 60u) << dp;
    EXPECT_EQ(tokens.back(), 59);
  }
}

TEST(ValidationLoaderTest, PaddingKeepsTheDocumentMask) {
  const TemporaryDirectory directory;
  write_documents(directory / "g", {{5, 6, 0}, {7, 0}}, 16);
  auto options = options_for(directory / "g", 8, 1);
  options.data.document_mask = true;
  const Batch batch = ValidationLoader(options, 1).batch(0, 0);
  EXPECT_THAT(batch.tokens, ElementsAre(5, 6, 0, 7, 0, 0, 0, 0));
  EXPECT_THAT(batch.segment_ids, ElementsAre(0, 0, 0, 1, -1, -1, -1, -1));
  EXPECT_THAT(batch.position_ids, ElementsAre(0, 1, 2, 0, 0, 0, 0, 0));
  EXPECT_THAT(batch.loss_mask, ElementsAre(1, 1, 0, 1, 0, 0, 0, 0));
}

TEST(ValidationLoaderTest, RefusesASourceWithoutATarget) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 1);
  EXPECT_THROW(ValidationLoader(options_for(directory / "x", 4, 1), 1), DataError);
  write_counting(directory / "x", 2);
  EXPECT_EQ(ValidationLoader(options_for(directory / "x", 4, 1), 1).batches(0), 1);
  EXPECT_THROW(ValidationLoader(options_for(directory / "x", 4, 1), 0), ConfigError);
}

}  // namespace
}  // namespace conclave::data
