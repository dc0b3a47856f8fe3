// SPDX-License-Identifier: Apache-2.0
#include "core/timeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace conclave {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Timeline, RecordsNothingWhileOff) {
  Timeline timeline;
  { const Span span(&timeline, "layers.0.attention", "forward", 3); }
  { const Span span(nullptr, "layers.0.attention", "forward", 3); }
  EXPECT_TRUE(timeline.events().empty());
  timeline.start();
  {
    const Span span(&timeline, "late", "forward");
    timeline.stop();
  }
  EXPECT_TRUE(timeline.events().empty()) << "a span that ends after the recording has no end";
}

TEST(Timeline, SpansLieInOneAnother) {
  Timeline timeline;
  timeline.start();
  {
    const Span outer(&timeline, "update", "step");
    const Span inner(&timeline, "layers.0.attention", "forward", 3);
  }
  ASSERT_EQ(timeline.events().size(), 2u);
  const auto &inner = timeline.events()[0], &outer = timeline.events()[1];
  EXPECT_EQ(inner.name, "layers.0.attention");
  EXPECT_EQ(inner.micro_batch, 3);
  EXPECT_LE(outer.begin, inner.begin);
  EXPECT_LE(inner.begin, inner.end);
  EXPECT_LE(inner.end, outer.end);
}

TEST(Timeline, WritesWorkAndExchangesOfARank) {
  Timeline timeline;
  timeline.start();
  timeline.add({.name = "experts", .phase = "backward", .micro_batch = 1, .begin = 1500, .end = 4000});
  timeline.add(
      {.name = "dispatch", .phase = "forward", .micro_batch = 0, .exchange = true, .begin = 1000, .end = 2000});
  const std::string text = timeline.json(7);
  EXPECT_THAT(text, HasSubstr(R"("name":"rank 7")"));
  EXPECT_THAT(text,
              HasSubstr(R"({"ph":"X","ts":1.500,"dur":2.500,"name":"experts","cat":"backward","pid":7,"tid":0,)"));
  EXPECT_THAT(text, HasSubstr(R"("args":{"phase":"backward","micro-batch":1}},)"));
  EXPECT_THAT(text, HasSubstr(R"({"ph":"b","ts":1.000,"name":"dispatch")"));
  EXPECT_THAT(text, HasSubstr(R"({"ph":"e","ts":2.000,"name":"dispatch")"));
  timeline.start();
  EXPECT_THAT(timeline.json(7), Not(HasSubstr("experts"))) << "a new recording begins empty";
}

}  // namespace
}  // namespace conclave
