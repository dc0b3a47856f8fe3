// SPDX-License-Identifier: Apache-2.0
// Transfers advance by polling or by a thread, errors reach the one who waits, and nothing runs while nothing is under
// way.
#include "comm/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>

#include "core/error.h"

namespace conclave::test {
namespace {

using comm::Progress;
using comm::ProgressBy;
using namespace std::chrono_literals;

// Needs `needed` calls to complete; fails at the last one if told to. Not thread-safe on purpose: ThreadSanitizer sees
// two threads that advance it at a time.
class FakeTransfer : public comm::Pending {
 public:
  explicit FakeTransfer(int needed, bool fails = false) : needed_(needed), fails_(fails) {}
  bool advance() override {
    ++calls;
    if (++done_ < needed_) return false;
    if (fails_) throw CommError("rank 3 is gone");
    return true;
  }
  void wait() override {
    ++waits;
    while (!advance()) continue;
  }
  std::atomic<int> calls{0}, waits{0};

 private:
  int needed_, done_ = 0;
  bool fails_;
};

template <typename Condition>
bool soon(Condition condition) {
  for (int i = 0; i < 2000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
  return condition();
}

TEST(Progress, PollAdvancesTheOldestTransferThatIsNotComplete) {
  Progress progress;
  const auto first = std::make_shared<FakeTransfer>(2), second = std::make_shared<FakeTransfer>(5);
  progress.poll();
  progress.add(first);
  progress.add(second);
  progress.poll();
  EXPECT_EQ(first->calls, 1);
  progress.poll();
  progress.poll();
  EXPECT_EQ(first->calls, 2) << "complete";
  EXPECT_EQ(second->calls, 1);
  progress.finish(first);
  EXPECT_EQ(first->waits, 0) << "nothing to wait for";
  progress.finish(second);
  EXPECT_EQ(second->waits, 1);
  progress.poll();
  EXPECT_EQ(second->calls, 5);
}

TEST(Progress, AnErrorMetWhilePollingIsThrownToTheOneWhoWaits) {
  Progress progress;
  const auto bad = std::make_shared<FakeTransfer>(1, true), good = std::make_shared<FakeTransfer>(1);
  progress.add(bad);
  progress.add(good);
  EXPECT_NO_THROW(progress.poll());
  EXPECT_NO_THROW(progress.finish(good));
  EXPECT_THROW(progress.finish(bad), CommError);
}

TEST(ProgressThread, CompletesTransfersThatNobodyPolls) {
  Progress progress;
  progress.advance_by(ProgressBy::kThread);
  const auto first = std::make_shared<FakeTransfer>(50), second = std::make_shared<FakeTransfer>(5);
  progress.add(first);
  progress.add(second);
  EXPECT_TRUE(soon([&] { return first->calls == 50 && second->calls == 5; }));
  progress.poll();
  progress.finish(first);
  progress.finish(second);
  EXPECT_EQ(first->waits + second->waits, 0) << "the thread alone calls";
}

TEST(ProgressThread, SleepsWhileNothingIsUnderWay) {
  Progress progress;
  progress.advance_by(ProgressBy::kThread);
  const auto transfer = std::make_shared<FakeTransfer>(3);
  progress.add(transfer);
  ASSERT_TRUE(soon([&] { return transfer->calls == 3; }));
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(transfer->calls, 3) << "complete, though not finished yet";
  progress.finish(transfer);
  const auto later = std::make_shared<FakeTransfer>(3);
  progress.add(later);
  progress.finish(later);
  EXPECT_EQ(later->calls, 3) << "woken again";
}

TEST(ProgressThread, AnErrorIsThrownToTheOneWhoWaitsAndOthersGoOn) {
  Progress progress;
  progress.advance_by(ProgressBy::kThread);
  const auto bad = std::make_shared<FakeTransfer>(10, true), good = std::make_shared<FakeTransfer>(100);
  progress.add(bad);
  progress.add(good);
  try {
    progress.finish(bad);
    ADD_FAILURE() << "no exception";
  } catch (const CommError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("rank 3 is gone"));
  }
  EXPECT_NO_THROW(progress.finish(good));
}

TEST(ProgressThread, LetsGoOfWhatIsDropped) {
  Progress progress;
  progress.advance_by(ProgressBy::kThread);
  auto endless = std::make_shared<FakeTransfer>(1 << 30);
  progress.add(endless);
  ASSERT_TRUE(soon([&] { return endless->calls > 10; }));
  progress.drop(endless);
  const int calls = endless->calls;
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(endless->calls, calls);
  EXPECT_EQ(endless.use_count(), 1);
}

TEST(ProgressThread, ChangesHandsOnlyWhileNothingIsUnderWay) {
  Progress progress;
  for (int i = 0; i < 3; ++i) {
    for (const auto by : {ProgressBy::kThread, ProgressBy::kPoll}) {
      progress.advance_by(by);
      const auto transfer = std::make_shared<FakeTransfer>(7);
      progress.add(transfer);
      EXPECT_THROW(progress.advance_by(ProgressBy::kPoll), BugError);
      progress.finish(transfer);
      EXPECT_EQ(transfer->waits, by == ProgressBy::kPoll ? 1 : 0);
    }
  }
}

}  // namespace
}  // namespace conclave::test
