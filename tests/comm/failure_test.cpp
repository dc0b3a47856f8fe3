// SPDX-License-Identifier: Apache-2.0
#include "comm/failure.h"

#include <gtest/gtest.h>

#include <new>

#include "core/error.h"

namespace conclave::comm {
namespace {

const std::vector<std::string> kHosts = {"a", "a", "b", "b"};

TEST(FailureTest, WhatAllRanksSayIsSaidOnceAndPlainly) {
  const std::vector<Failure> all(4, {78, "no such key"});
  EXPECT_EQ(describe_failures(all, kHosts), "no such key\n");
  EXPECT_EQ(describe_failures({{65, "short"}}, {"a"}), "short\n");
}

TEST(FailureTest, RanksThatFailAlikeShareALine) {
  EXPECT_EQ(describe_failures({{}, {}, {65, "short"}, {65, "short"}}, kHosts), "ranks 2-3 on b: short\n");
  EXPECT_EQ(describe_failures({{}, {65, "x"}, {65, "x"}, {74, "full"}}, kHosts),
            "ranks 1 on a, 2 on b: x\nrank 3 on b: full\n");
}

TEST(FailureTest, ALostPeerIsNotTheCauseWhenThereIsOne) {
  const std::vector<Failure> failures = {{76, "lost"}, {}, {81, "nan"}, {65, "short"}};
  EXPECT_EQ(describe_failures(failures, kHosts), "rank 2 on b: nan\nrank 3 on b: short\n");
  EXPECT_EQ(first_cause(failures).code, 81);
  EXPECT_EQ(describe_failures({{76, "lost"}, {}, {}, {}}, kHosts), "rank 0 on a: lost\n");
  EXPECT_EQ(first_cause({{}, {76, "lost"}}).code, 76);
}

TEST(FailureTest, ForeignExceptionsAreBugs) {
  EXPECT_EQ(failure_of(std::make_exception_ptr(IoError("disk"))).code, 74);
  EXPECT_EQ(failure_of(std::make_exception_ptr(std::bad_alloc())).code, 70);
  const Failure foreign = failure_of(std::make_exception_ptr(std::runtime_error("odd")));
  EXPECT_EQ(foreign.code, 70);
  EXPECT_EQ(foreign.message, "internal error: odd");
  EXPECT_EQ(failure_of(std::make_exception_ptr(3)).code, 70);
}

}  // namespace
}  // namespace conclave::comm
