// SPDX-License-Identifier: Apache-2.0
#include "app/verify_command.h"

#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "text/scratch_directory.h"

namespace conclave::app {
namespace {

// Exit code of `conclave verify <words>` on configs/tiny.yaml, made smaller.
int verify(std::vector<std::string> words) {
  CLI::App app{"conclave"};
  std::function<int()> run;
  add_verify_command(app, run);
  for (const char* set : {"data.seq_len=16", "model.max_seq_len=16", "train.micro_batch_size=1"})
    words.insert(words.end(), {"--set", set});
  words.insert(words.begin(), {"verify", CONCLAVE_SOURCE_DIR "/configs/tiny.yaml", "-n", "2", "--steps", "1"});
  std::reverse(words.begin(), words.end());
  app.parse(words);
  return run();
}

TEST(VerifyCommandRanks, EndsWithZeroWhenPromisesHoldAndWith81WhenTheyDoNot) {
  const text::ScratchDirectory scratch;
  EXPECT_EQ(verify({"--json", scratch / "good.json"}), 0);
  EXPECT_EQ(verify({"--json", scratch / "bad.json", "--plant", "grad-scale"}), static_cast<int>(ExitCode::kNumeric));
  std::ifstream good(scratch / "good.json"), bad(scratch / "bad.json");
  EXPECT_EQ(nlohmann::json::parse(good)["all_hold"], true);
  EXPECT_EQ(nlohmann::json::parse(bad)["all_hold"], false);
}

TEST(VerifyCommand, RefusesAFaultItDoesNotKnow) { EXPECT_THROW(verify({"--plant", "gremlins"}), CLI::ValidationError); }

TEST(VerifyCommand, HasAnExampleInItsHelp) {
  CLI::App app{"conclave"};
  std::function<int()> run;
  add_verify_command(app, run);
  const auto help = app.get_subcommand("verify")->help();
  EXPECT_THAT(help, ::testing::HasSubstr("Example:"));
  EXPECT_THAT(help, ::testing::HasSubstr("81"));
}

}  // namespace
}  // namespace conclave::app
