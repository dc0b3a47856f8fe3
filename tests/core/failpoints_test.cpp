// SPDX-License-Identifier: Apache-2.0
#include "core/failpoints.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace conclave {
namespace {

TEST(FailpointsTest, FiresAtTheNamedVisitOfTheNamedRankOnly) {
  Failpoints points("grad:2:1=nan,save:1:0=errno", 1);
  EXPECT_FALSE(points.hit("grad"));
  EXPECT_TRUE(points.hit("grad"));
  EXPECT_FALSE(points.hit("grad"));
  EXPECT_FALSE(points.hit("save"));
  EXPECT_EQ(points.visits().at("grad"), 3);
  Failpoints other("save:1=errno", 3);
  EXPECT_THROW(other.hit("save"), IoError);
}

TEST(FailpointsTest, RefusesWhatItCannotRead) {
  for (const char* bad : {"grad", "grad=nan", "grad:x=nan", "grad:1=explode", "grad:1:2:3=nan", "=nan"})
    EXPECT_THROW(Failpoints(bad, 0), UsageError) << bad;
}

}  // namespace
}  // namespace conclave
