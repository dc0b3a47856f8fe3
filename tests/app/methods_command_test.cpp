// SPDX-License-Identifier: Apache-2.0
#include "app/methods_command.h"

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>

#include "config/schema.h"
#include "core/error.h"
#include "moe/balance_loss.h"
#include "moe/capacity.h"
#include "moe/compression.h"
#include "moe/router.h"

namespace conclave::app {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(MethodsCommand, ListsEveryRowOfEveryTable) {
  const std::string list = methods_list();
  for (const auto& row : moe::Router::table())
    EXPECT_THAT(list, HasSubstr(std::string("  ") + std::string(row.info.type)));
  for (const auto& row : moe::AuxiliaryLoss::table()) EXPECT_THAT(list, HasSubstr(std::string(row.what)));
  for (const auto& row : moe::Admission::table()) EXPECT_THAT(list, HasSubstr(std::string(row.info.what)));
  for (const auto& row : moe::Compressor::table()) EXPECT_THAT(list, HasSubstr(std::string(row.info.what)));
}

TEST(MethodsCommand, EveryMethodSaysWhatItIsAndWhereItComesFrom) {
  const auto complete = [](const moe::MethodInfo& info) {
    return !info.type.empty() && !info.what.empty() && !info.source.empty() && !info.equation.empty();
  };
  for (const auto& row : moe::Router::table()) {
    EXPECT_TRUE(complete(row.info)) << row.info.type;
    EXPECT_FALSE(row.info.exports.empty()) << row.info.type;
  }
  for (const auto& row : moe::AuxiliaryLoss::table())
    EXPECT_FALSE(row.source.empty() || row.equation.empty()) << row.what;
  for (const auto& row : moe::Admission::table()) EXPECT_TRUE(complete(row.info)) << row.info.type;
  for (const auto& row : moe::Compressor::table()) EXPECT_TRUE(complete(row.info)) << row.info.type;
}

TEST(MethodsCommand, ShowsClassSourceAndKeysOfItsOwn) {
  const std::string text = method_text("expert_choice");
  EXPECT_THAT(text, HasSubstr("moe.router.type: expert_choice\n"));
  EXPECT_THAT(text, HasSubstr("C3: depends on later tokens, too"));
  EXPECT_THAT(text, HasSubstr("below moe.router.expert_choice:\n    threshold_decay"));
  EXPECT_THAT(method_text("l1"), HasSubstr("    rate "));
  EXPECT_THAT(method_text("device"), HasSubstr("keys in moe.balance.losses[]:\n    coef "));
  EXPECT_THAT(method_text("device"), HasSubstr("    devices "));
  EXPECT_THAT(method_text("device"), Not(HasSubstr("max_devices")));
  EXPECT_THAT(method_text("z"), Not(HasSubstr("devices")));
  EXPECT_THAT(method_text("lsh"), HasSubstr("C3: depends on later tokens, too"));
  EXPECT_THAT(method_text("lsh"), HasSubstr("below moe.dispatch.compression:\n    type "));
  EXPECT_THAT(method_text("lsh"), HasSubstr("    hashes "));
}

TEST(MethodsCommand, AnUnknownNameIsAnsweredWithThoseThereAre) {
  try {
    method_text("rellu");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("there is no method rellu"));
    EXPECT_THAT(error.what(), HasSubstr("relu"));
  }
}

TEST(MethodsCommand, PageOfMethodsIsNotStale) {
  std::ifstream stream(CONCLAVE_SOURCE_DIR "/docs/methods.md");
  std::ostringstream page;
  page << stream.rdbuf();
  EXPECT_TRUE(config::replace_generated(page.str(), "conclave methods docs", methods_tables()) == page.str())
      << "run: conclave methods docs --write docs/methods.md";
}

}  // namespace
}  // namespace conclave::app
