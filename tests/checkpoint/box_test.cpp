// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/box.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/error.h"

namespace conclave::checkpoint {
namespace {

// Row-major numbers of the elements of `box`, in its own order.
std::vector<int64_t> elements_of(const Box& box, const Shape& global) {
  std::vector<int64_t> elements{0};
  for (size_t d = 0; d < global.size(); ++d) {
    std::vector<int64_t> deeper;
    for (const int64_t element : elements)
      for (int64_t i = 0; i < box.shape[d]; ++i) deeper.push_back(element * global[d] + box.offset[d] + i);
    elements = std::move(deeper);
  }
  return elements;
}

TEST(BoxTest, ARangeIsTheRestOfARowWholeRowsAndTheStartOfARow) {
  const Shape global{4, 10};
  EXPECT_EQ(boxes_of_range(global, 0, 40), (std::vector<Box>{{{0, 0}, {4, 10}}}));
  EXPECT_EQ(boxes_of_range(global, 10, 30), (std::vector<Box>{{{1, 0}, {2, 10}}}));
  EXPECT_EQ(boxes_of_range(global, 3, 34), (std::vector<Box>{{{0, 3}, {1, 7}}, {{1, 0}, {2, 10}}, {{3, 0}, {1, 4}}}));
  EXPECT_EQ(boxes_of_range(global, 12, 15), (std::vector<Box>{{{1, 2}, {1, 3}}}));
  EXPECT_TRUE(boxes_of_range(global, 17, 17).empty());
  EXPECT_EQ(boxes_of_range({}, 0, 1), (std::vector<Box>{{{}, {}}}));
  EXPECT_THROW(boxes_of_range(global, 0, 41), BugError);
  EXPECT_THROW(boxes_of_range(global, 5, 4), BugError);
}

RC_GTEST_PROP(BoxTest, TheBoxesOfARangeHoldItsElementsInOrder, ()) {
  const auto dimensions = *rc::gen::inRange<size_t>(1, 5);
  const auto global = *rc::gen::container<Shape>(dimensions, rc::gen::inRange<int64_t>(1, 6));
  const int64_t all = *volume(global);
  const int64_t begin = *rc::gen::inRange<int64_t>(0, all + 1), end = *rc::gen::inRange<int64_t>(begin, all + 1);
  const auto boxes = boxes_of_range(global, begin, end);
  RC_ASSERT(boxes.size() <= 2 * dimensions - 1);
  int64_t next = begin;
  for (const Box& box : boxes) {
    RC_ASSERT(inside(box, global));
    for (const int64_t element : elements_of(box, global)) RC_ASSERT(element == next++);
  }
  RC_ASSERT(next == end);
}

}  // namespace
}  // namespace conclave::checkpoint
