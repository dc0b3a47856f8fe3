// SPDX-License-Identifier: Apache-2.0
#include "app/config_command.h"

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>

#include "app/check_command.h"
#include "app/generated_page.h"
#include "config/config_files.h"
#include "config/schema.h"
#include "config/suggest.h"
#include "train/run_config.h"

namespace conclave::app {
namespace {

using testing::HasSubstr;
using testing::Not;
using Kind = config::Override::Kind;

const std::string kTiny = CONCLAVE_SOURCE_DIR "/configs/tiny.yaml";
const char* const kRun =
    "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n"
    "moe: {granularity: 2}\n"
    "data: {train: [{name: a, path: a}], seq_len: 128}\n";

// Runs `words` as a command line; returns its exit code.
int run_command(const std::vector<std::string>& words, ConfigOptions* seen = nullptr) {
  CLI::App app{"conclave"};
  std::function<int()> run;
  add_check_command(app, run);
  add_config_command(app, run);
  if (seen != nullptr) add_config_options(*app.add_subcommand("probe"), *seen);
  std::vector<std::string> reversed(words.rbegin(), words.rend());
  app.parse(reversed);
  return run ? run() : -1;
}

TEST(ConfigCommand, OverridesKeepTheirCommonOrder) {
  ConfigOptions options;
  run_command({"probe", "--set", "a.b=1", "--unset", "a.b", "x.yaml", "--set-file", "c=d", "--set", "a.b=[2, 3]"},
              &options);
  EXPECT_EQ(options.file, "x.yaml");
  ASSERT_EQ(options.overrides.size(), 4u);
  EXPECT_EQ(options.overrides[0].text, "a.b=1");
  EXPECT_EQ(options.overrides[1].kind, Kind::kUnset);
  EXPECT_EQ(options.overrides[2].kind, Kind::kSetFile);
  EXPECT_EQ(options.overrides[3].text, "a.b=[2, 3]");
}

TEST(ConfigCommand, ShowsWhatWasWrittenResolvedDifferentAndFromWhere) {
  const ConfigOptions options{kTiny, {{Kind::kSet, "optim.lr=0.5"}}};
  const std::string written = show_config(options, ConfigView::kWritten);
  EXPECT_THAT(written, HasSubstr("lr: 0.5\n"));
  EXPECT_THAT(written, Not(HasSubstr("rope_theta")));
  EXPECT_THAT(show_config(options, ConfigView::kResolved), HasSubstr("  rope_theta: 10000.0\n"));
  const std::string different = show_config(options, ConfigView::kDiffDefaults);
  EXPECT_THAT(different, HasSubstr("  hidden_size: 64\n"));
  EXPECT_THAT(different, Not(HasSubstr("rope_theta")));
  EXPECT_THAT(different, Not(HasSubstr("global_batch_size")));  // written, but equal to the default
  const std::string origins = show_config(options, ConfigView::kOrigins);
  EXPECT_THAT(origins, HasSubstr("  lr: 0.5  # --set #1\n"));
  EXPECT_THAT(origins, HasSubstr("  rope_theta: 10000.0  # default\n"));
  EXPECT_THAT(origins, HasSubstr("tiny.yaml:6:15\n"));
  EXPECT_THAT(origins, HasSubstr("(from data.seq_len)\n"));
}

TEST(ConfigCommand, ReferencePageIsNotStale) {
  std::ifstream stream(CONCLAVE_SOURCE_DIR "/docs/configuration.md");
  std::ostringstream page;
  page << stream.rdbuf();
  EXPECT_TRUE(config::replace_generated(page.str(), "conclave config docs", config::docs_tables(train::run_schema())) ==
              page.str())
      << "run: conclave config docs --write docs/configuration.md";
}

TEST(ConfigCommand, EveryKeyHasADescription) {
  for (const std::string& path : config::leaf_paths(train::run_schema())) {
    std::string plain = path;
    for (size_t at; (at = plain.find("[]")) != std::string::npos;) plain.erase(at, 2);
    const config::Schema* schema = config::find(train::run_schema(), plain);
    ASSERT_NE(schema, nullptr) << path;
    EXPECT_FALSE(schema->doc.empty()) << path;
  }
}

TEST(ConfigCommand, EveryAliasNamesAKeyThatExists) {
  for (const auto& [name, answer] : config::aliases()) {
    const std::string key = answer.substr(0, answer.find(' '));
    if (key.starts_with("--")) continue;
    EXPECT_NE(config::find(train::run_schema(), key), nullptr) << name << " -> " << answer;
  }
}

TEST(ConfigCommand, JsonSchemaHasEveryKeyAndTheRules) {
  const auto schema = config::json_schema(train::run_schema());
  EXPECT_EQ(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
  EXPECT_EQ(schema["additionalProperties"], false);
  const auto& model = schema["properties"]["model"]["anyOf"][0];
  EXPECT_EQ(model["properties"]["hidden_size"]["anyOf"][0]["type"], "integer");
  EXPECT_EQ(model["properties"]["hidden_size"]["anyOf"][0]["minimum"], 1);
  EXPECT_EQ(model["properties"]["qk_norm"]["anyOf"][0]["enum"], (std::vector<std::string>{"none", "head", "full"}));
  EXPECT_EQ(model["properties"]["hidden_size"]["description"], "width of the residual stream");
  const auto& loss =
      schema["properties"]["moe"]["anyOf"][0]["properties"]["balance"]["anyOf"][0]["properties"]["losses"];
  EXPECT_TRUE(loss["items"]["anyOf"][0]["properties"].contains("convention"));
  EXPECT_EQ(schema["properties"].size(), train::run_schema().children.size() + 1);  // and include
}

TEST(ConfigCommand, RenewsAPageInPlace) {
  const ConfigFiles files;
  const auto page = files.write("page.md",
                                "top\n<!-- generated by `conclave config docs`: begin -->\nold\n"
                                "<!-- generated by `conclave config docs`: end -->\nbottom\n");
  EXPECT_EQ(run_command({"config", "docs", "--write", page.string()}), 0);
  std::ostringstream text;
  text << std::ifstream(page).rdbuf();
  EXPECT_THAT(text.str(), testing::StartsWith("top\n"));
  EXPECT_THAT(text.str(), HasSubstr("| `hidden_size` | integer | required |"));
  EXPECT_THAT(text.str(), Not(HasSubstr("old\n")));
  EXPECT_THROW(renew_page("/nowhere/page.md", "conclave config docs", ""), IoError);
}

TEST(CheckCommand, ReportsLayoutExpertsBatchAndMemory) {
  const ConfigFiles files;
  files.write("a.bin", "");
  files.write("a.idx", "");
  CheckOptions options{
      {files.write("run.yaml", kRun).string(), {{Kind::kSet, "parallel={ep: 2, reduction: canonical}"}}}, 4};
  const std::string report = check_report(options);
  EXPECT_THAT(report, HasSubstr("layout: 4 ranks = pp 1 x dp 4 x cp 1 x tp 1; experts over ep 2, each on 2 ranks\n"));
  EXPECT_THAT(report,
              HasSubstr("experts: 16 experts of width 128, 4 for each token, 8 on each rank (granularity 2)\n"));
  EXPECT_THAT(report, HasSubstr("batch: 8 sequences of 128 tokens = 8 micro-batches, 2 on each data-parallel rank\n"));
  EXPECT_THAT(report, HasSubstr(" (zero 1), activations"));
  EXPECT_THAT(report, HasSubstr("reduction canonical: 2 gradient sets, 2 times for local experts, "));
  EXPECT_THAT(report, HasSubstr("no problems found\n"));
}

TEST(CheckCommand, FindsMissingDataAndAWrongNumberOfRanks) {
  const ConfigFiles files;
  CheckOptions options{{files.write("run.yaml", kRun).string(), {{Kind::kSet, "parallel.dp=2"}}}, 3};
  const std::string message = config_error([&] { check_report(options); });
  EXPECT_THAT(message, HasSubstr("run.yaml:3:32: data.train[0].path: no "));
  EXPECT_THAT(message,
              HasSubstr("--set #1: parallel.dp: the mesh pp 1 x dp 2 x cp 1 x tp 1 takes 2 ranks, but there are 3"));
}

TEST(CheckCommand, ExplainsArgumentsOfOtherStacks) {
  EXPECT_THAT(explain_argument("--train-iters=5", {}), HasSubstr("train.steps"));
  EXPECT_THAT(explain_argument("--micro-batch-size", {}), HasSubstr("train.micro_batch_size"));
  EXPECT_EQ(explain_argument("chekc", {"train", "check"}), "did you mean check?");
  EXPECT_EQ(explain_argument("--zzz", {"train"}), "");
  EXPECT_EQ(explain_argument("train", {"train"}), "") << "it is right";
}

}  // namespace
}  // namespace conclave::app
