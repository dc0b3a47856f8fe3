// SPDX-License-Identifier: Apache-2.0
// What a rank says of its device when something goes wrong: where it waits, and that memory has run out.
#include "app/rank_device.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>

namespace conclave::app {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(RankDevice, AWaitForItIsSeenByTheWatchdog) {
  const auto activity = std::make_shared<comm::Activity>();
  kernels::HostReads reads;
  bool seen = false;
  const auto show = shown_waits(activity);
  show([&] { seen = activity->collective() == comm::kDeviceWait; });
  EXPECT_TRUE(seen);
  EXPECT_EQ(activity->collective(), nullptr);
  EXPECT_THROW(show([] { throw CommError("broken off"); }), CommError);
  EXPECT_EQ(activity->collective(), nullptr) << "who failed waits no more";
  const comm::Inside outer(*activity, "all_reduce");
  show([] {});
  EXPECT_STREQ(activity->collective(), "all_reduce");
}

// As LibTorch 2.11 words it.
constexpr const char* kWords =
    "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 3 has a total capacity of 139.72 GiB of which 10.25 GiB is "
    "free. Including non-PyTorch memory, this process has 129.46 GiB memory in use. Of the allocated memory 120.00 GiB "
    "is allocated by PyTorch.";

int run_out(const std::string& words) {
  throw c10::OutOfMemoryError(c10::SourceLocation{"allocate", "CUDACachingAllocator.cpp", 1}, words);
}

Error advised(const train::RunConfig& config, const std::string& words) {
  try {
    with_memory_advice(config, [&] { return run_out(words); });
  } catch (const Error& error) {
    return error;
  }
  return Error(ExitCode::kDone, "nothing was thrown");
}

TEST(RankDevice, WithoutMemorySaysHowMuchIsMissingAndWhatToDo) {
  train::RunConfig config;
  config.train.micro_batch_size = 8;
  const Error error = advised(config, kWords);
  EXPECT_EQ(error.code(), ExitCode::kBug) << "70: no memory left";
  EXPECT_EQ(std::string(error.what()),
            "GPU 3 has no memory left: 20.50 GiB more were asked for, and of its 139.72 GiB are free 10.25 GiB.\n  Set "
            "train.micro_batch_size below 8, or memory.recompute: full (now none), or take more ranks. `conclave info "
            "CONFIG` counts what a rank holds.");
}

TEST(RankDevice, WithoutMemoryAdvisesOnlyWhatIsLeftToTry) {
  train::RunConfig config;
  config.train.micro_batch_size = 1;
  config.memory.recompute = model::Recompute::kFull;
  const std::string text = advised(config, "no memory, in other words\nand a second line").what();
  EXPECT_THAT(text, HasSubstr("the GPU has no memory left: no memory, in other words.\n"));
  EXPECT_THAT(text, HasSubstr("smaller data.seq_len"));
  EXPECT_THAT(text, Not(HasSubstr("recompute")));
}

TEST(RankDevice, OtherErrorsPass) {
  EXPECT_THROW(with_memory_advice({}, []() -> int { throw ConfigError("no such key"); }), ConfigError);
  EXPECT_EQ(with_memory_advice({}, [] { return 75; }), 75);
}

}  // namespace
}  // namespace conclave::app
