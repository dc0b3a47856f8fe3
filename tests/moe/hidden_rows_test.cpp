// SPDX-License-Identifier: Apache-2.0
#include "moe/hidden_rows.h"

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

namespace conclave::moe {
namespace {

const std::vector<Segment> kSegments{{1, 0, 0, 16}, {2, 0, 16, 32}, {0, 1, 48, 16}, {2, 1, 64, 16}};

TEST(HiddenRows, OfOneWidthAreOneMatrix) {
  const std::vector<int64_t> widths(3, 6);
  const HiddenRows rows(kSegments, widths);
  ASSERT_EQ(rows.runs().size(), 1u);
  const Tensor hidden = rows.empty(2, at::kFloat);
  EXPECT_EQ(rows.run(rows.runs()[0], hidden).sizes().vec(), (std::vector<int64_t>{80, 12}));
  EXPECT_TRUE(rows.segment(2, hidden).is_contiguous());
  EXPECT_EQ(rows.segment(2, hidden).data_ptr(), hidden.view({80, 12})[48].data_ptr());
}

TEST(HiddenRows, OfDifferentWidthsFollowEachOther) {
  const std::vector<int64_t> widths{4, 3, 3};
  const HiddenRows rows(kSegments, widths);
  Tensor hidden = rows.empty(2, at::kDouble);
  ASSERT_EQ(hidden.numel(), 2 * (48 * 3 + 16 * 4 + 16 * 3));
  hidden.copy_(at::arange(hidden.numel(), at::kDouble));
  int64_t next = 0;
  for (size_t i = 0; i < kSegments.size(); ++i) {
    const Tensor own = rows.segment(i, hidden);
    EXPECT_EQ(own.sizes().vec(), (std::vector<int64_t>{kSegments[i].rows, 2 * widths[kSegments[i].expert]}));
    EXPECT_EQ(own[0][0].item<double>(), static_cast<double>(next));
    next += own.numel();
  }
  EXPECT_EQ(next, hidden.numel());
  ASSERT_EQ(rows.runs().size(), 3u) << "neighbours of one width share a run";
  EXPECT_EQ(rows.runs()[1].begin, 48);
  EXPECT_EQ(rows.run(rows.runs()[1], hidden).data_ptr(), rows.segment(2, hidden).data_ptr());
}

TEST(HiddenRows, MayBeNone) {
  const HiddenRows rows({}, {});
  EXPECT_TRUE(rows.runs().empty());
  EXPECT_EQ(rows.empty(2, at::kFloat).numel(), 0);
}

TEST(HiddenRows, HaveNoGaps) {
  const std::vector<Segment> gap{{0, 0, 0, 16}, {0, 0, 32, 16}};
  EXPECT_THROW(HiddenRows(gap, std::vector<int64_t>{4}), BugError);
}

}  // namespace
}  // namespace conclave::moe
