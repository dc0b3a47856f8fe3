// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/store.h"

#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(StoreTest, RestoresEveryByteAndTheProgress) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  const auto saved = run.save(7);
  EXPECT_EQ(saved.folder, scratch.step(7));
  EXPECT_EQ(slurp(scratch.run() / "checkpoints" / "LATEST"), "step-0000000007\n");
  TestState state(comm::Group(), {}, 999);
  const auto manifest = run.store.resume(request(), state.dict());
  ASSERT_TRUE(manifest);
  EXPECT_EQ(manifest->step, 7);
  EXPECT_EQ(manifest->tokens, 7000);
  EXPECT_EQ(manifest->samples, 56);
  EXPECT_EQ(manifest->extra, contents_at(7).extra);
  EXPECT_EQ(manifest->state, saved.state);
  EXPECT_TRUE(state.same_as(TestState(comm::Group(), {}, 7)));
}

TEST(StoreTest, RemovesHalfWrittenFilesOfAnEarlierAttempt) {
  const Scratch scratch;
  std::filesystem::create_directories(scratch.run());
  for (const char* name : {".env.json.0a.tmp", ".metrics.jsonl.0b.tmp", ".LOCK.0c.tmp", "mine.tmp"})
    spill(scratch.run() / name, "half");
  const SingleRun run(scratch.run());
  EXPECT_THAT(entries(scratch.run(), "."), ElementsAre(".LOCK.0c.tmp"));
  EXPECT_TRUE(std::filesystem::exists(scratch.run() / "mine.tmp"));
}

TEST(StoreTest, RemembersWhichCheckpointItCameFrom) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  run.save(2);
  const auto text = slurp(scratch.step(2) / "MANIFEST.json");
  const auto manifest = parse_manifest(text, "m");
  ASSERT_TRUE(manifest.parent);
  EXPECT_EQ(manifest.parent->step, 1);
  EXPECT_EQ(manifest.parent->manifest, xxh3(slurp(scratch.step(1) / "MANIFEST.json")));
}

TEST(StoreTest, SplitsARanksFilesAtTheLimit) {
  const Scratch scratch;
  auto options = quick_options();
  options.max_file_bytes = 1500;
  SingleRun run(scratch.run(), "", options);
  run.save(1);
  EXPECT_GT(entries(scratch.step(1), "rank-00000").size(), 2u);
  EXPECT_TRUE(run.resumes_at(1));
}

// The columns of a [2, 24] matrix, cut at `ends`; one entry for each piece.
parallel::StateDict cut_columns(std::list<std::vector<float>>& pieces, const std::vector<int64_t>& ends) {
  parallel::StateDict state;
  int64_t begin = 0;
  for (const int64_t end : ends) {
    auto& piece = pieces.emplace_back();
    for (int64_t i = 0; i < 2 * (end - begin); ++i)
      piece.push_back(static_cast<float>(i / (end - begin) * 24 + begin + i % (end - begin)));
    state.push_back({"m",
                     "param",
                     comm::DType::kFloat32,
                     {2, 24},
                     {0, begin},
                     {2, end - begin},
                     std::as_writable_bytes(std::span(piece)),
                     true});
    begin = end;
  }
  return state;
}

TEST(StoreTest, LoadsPiecesThatWereCutElsewhere) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  std::list<std::vector<float>> saved;
  run.store.save(contents_at(1), cut_columns(saved, {10, 20, 24}));
  // Other cuts; the second and third pieces have the size of saved ones but another place.
  for (const std::vector<int64_t>& ends : {std::vector<int64_t>{4, 14, 24}, {24}, {10, 20, 24}, {1, 2, 23, 24}}) {
    std::list<std::vector<float>> expected, loaded;
    cut_columns(expected, ends);
    const auto state = cut_columns(loaded, ends);
    for (auto& piece : loaded) std::fill(piece.begin(), piece.end(), -1.0f);
    ASSERT_TRUE(run.store.resume(request(), state));
    EXPECT_EQ(loaded, expected);
  }
}

TEST(StoreTest, SavesTensorsOfSeveralBlocks) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  std::vector<float> values(5'000'001);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const auto size = static_cast<int64_t>(values.size());
  const parallel::StateDict state{
      {"big", "param", comm::DType::kFloat32, {size}, {0}, {size}, std::as_writable_bytes(std::span(values)), true}};
  run.store.save(contents_at(1), state);
  EXPECT_EQ(run.points.visits().at("mid-chunk"), 3);
  std::fill(values.begin(), values.end(), 0.0f);
  ASSERT_TRUE(run.store.resume(request(), state));
  for (size_t i = 0; i < values.size(); i += 977) ASSERT_EQ(values[i], static_cast<float>(i));
  auto bytes = slurp(scratch.step(1) / "rank-00000.safetensors");
  bytes[9'000'000] ^= 1;
  spill(scratch.step(1) / "rank-00000.safetensors", bytes);
  EXPECT_THAT(message_of([&] { run.store.resume(request(), state); }),
              HasSubstr("bytes 8388608 to 16777215 are damaged"));
}

TEST(StoreTest, KeepsTheNewestAndLeavesLaterOnesAlone) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  for (const int64_t step : {1, 2, 3, 9}) run.save(step);
  run.save(4);
  run.save(5);
  EXPECT_THAT(entries(scratch.run() / "checkpoints"), ElementsAre("LATEST", step_name(4), step_name(5), step_name(9)));
  EXPECT_THROW(SingleRun(scratch.where() / "other", "", StoreOptions{1, 1, {}}), ConfigError);
}

TEST(StoreTest, DamagedOnesDoNotCountAmongTheKept) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  for (const int64_t step : {1, 2, 3}) run.save(step);
  spill(scratch.step(3) / "rank-00000.safetensors", "broken");
  ASSERT_TRUE(run.resumes_at(2));
  run.save(4);
  EXPECT_THAT(entries(scratch.run() / "checkpoints", "step-"), ElementsAre(step_name(2), step_name(3), step_name(4)));
  run.save(3);
  run.save(5);
  EXPECT_THAT(entries(scratch.run() / "checkpoints", "step-"), ElementsAre(step_name(4), step_name(5)));
}

TEST(StoreTest, ReplacesACheckpointOfTheSameStep) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  spill(scratch.step(1) / "rank-00000.safetensors", "broken");
  run.save(1);
  EXPECT_TRUE(run.resumes_at(1));
  EXPECT_THAT(entries(scratch.run() / "checkpoints"), ElementsAre("LATEST", step_name(1)));
}

TEST(StoreTest, FallsBackToTheNewestValidOneOrSaysThatThereIsNone) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  run.save(2);
  std::filesystem::create_directory(scratch.run() / "checkpoints" / "step-99999999999999999999");
  std::filesystem::create_directory(scratch.step(8));  // the right name, but nothing in it
  spill(scratch.run() / "checkpoints" / "LATEST", "step-0000000008\n");
  EXPECT_TRUE(run.resumes_at(2));
  spill(scratch.step(2) / "rank-00000.safetensors", "");
  EXPECT_TRUE(run.resumes_at(1));
  std::filesystem::remove(scratch.step(1) / "MANIFEST.json");
  TestState state(comm::Group(), {}, 0);
  EXPECT_THROW(run.store.resume(request(), state.dict()), NoCheckpointError);
  const auto message = message_of([&] { run.store.resume(request(), state.dict()); });
  EXPECT_THAT(message, HasSubstr("none of the 3 checkpoints"));
  EXPECT_THAT(message, HasSubstr("0 bytes where the manifest says"));
  EXPECT_TRUE(std::filesystem::exists(scratch.step(2)));  // nothing is deleted while loading
}

TEST(StoreTest, RefusesTheCheckpointOfAnotherStepOrRunUnderThisName) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  run.save(2);
  std::filesystem::copy(scratch.step(1), scratch.step(3), std::filesystem::copy_options::recursive);
  EXPECT_TRUE(run.resumes_at(2));
  std::filesystem::remove_all(scratch.step(3));
  SingleRun other(scratch.where() / "other");
  other.save(3);
  std::filesystem::rename(scratch.where() / "other/checkpoints" / step_name(3), scratch.step(3));
  EXPECT_TRUE(run.resumes_at(2));
}

TEST(StoreTest, HonoursEveryWayToResume) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  TestState state(comm::Group(), {}, 5);
  EXPECT_FALSE(run.store.resume(request("auto"), state.dict()));
  EXPECT_FALSE(run.store.resume(request("never"), state.dict()));
  EXPECT_TRUE(state.same_as(TestState(comm::Group(), {}, 5)));
  EXPECT_THROW(run.store.resume(request("must"), state.dict()), NoCheckpointError);
  EXPECT_THROW(run.store.resume(request("/nowhere"), state.dict()), NoCheckpointError);
  run.save(3);
  EXPECT_TRUE(run.resumes_at(3, request("must")));
  EXPECT_THROW(run.store.resume(request("never"), state.dict()), ConfigError);
  SingleRun child(scratch.where() / "child");
  EXPECT_TRUE(child.resumes_at(3, request(scratch.run().string())));
  EXPECT_TRUE(child.resumes_at(3, request(scratch.step(3).string())));
  child.save(4);  // the same command again: its own progress wins
  EXPECT_TRUE(child.resumes_at(4, request(scratch.run().string())));
}

TEST(StoreTest, ReportsAPathWithoutAValidCheckpoint) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(3);
  SingleRun child(scratch.where() / "child");
  TestState state(comm::Group(), {}, 5);
  spill(scratch.step(3) / "rank-00000.safetensors", "x");
  EXPECT_THROW(child.store.resume(request(scratch.step(3).string()), state.dict()), NoCheckpointError);
  EXPECT_THROW(child.store.resume(request(scratch.run().string()), state.dict()), NoCheckpointError);
}

TEST(StoreTest, RefusesAnotherModelAndNamesWhatDiffers) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  TestState state(comm::Group(), {}, 5);
  auto other = request();
  other.config.model["moe"]["num_experts"] = 8;
  EXPECT_THROW(run.store.resume(other, state.dict()), ConfigError);
  EXPECT_THAT(message_of([&] { run.store.resume(other, state.dict()); }), HasSubstr("moe.num_experts: 4, now 8"));
  auto training = request();
  training.config.training["lr"] = 0.1;
  training.config.runtime["host"] = "elsewhere";
  EXPECT_TRUE(run.resumes_at(1, training));
}

TEST(StoreTest, NamesTensorsThatAreMissingExtraOrDifferent) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  const auto fails_with = [&](const std::function<void(parallel::StateDict&)>& change, const std::string& text) {
    TestState state(comm::Group(), {}, 5);
    change(state.dict());
    EXPECT_THROW(run.store.resume(request(), state.dict()), ConfigError) << text;
    EXPECT_THAT(message_of([&] { run.store.resume(request(), state.dict()); }), HasSubstr(text));
    EXPECT_TRUE(state.same_as(TestState(comm::Group(), {}, 5))) << "read before the check";
  };
  fails_with([](auto& dict) { dict[0].name = "head.weight"; },
             "lacks 1 of the tensors this run needs: head.weight (param)");
  fails_with([](auto& dict) { dict.erase(dict.begin()); },
             "has 1 tensors that this run has no place for: embed.weight (param)");
  fails_with([](auto& dict) { dict[0].global_shape = {8, 37}; }, "embed.weight (param) is F32 [37,8]");
  fails_with([](auto& dict) { dict[0].dtype = comm::DType::kInt32; }, "I32 [37,8] in this run");
  TestState weights(comm::Group(), {}, 5);
  std::erase_if(weights.dict(), [](const auto& entry) { return entry.role != "param"; });
  auto partial = request();
  partial.load.partial = true;
  partial.load.full = false;
  EXPECT_TRUE(run.store.resume(partial, weights.dict()));
  EXPECT_EQ(weights.bytes("embed.weight", "param"), TestState(comm::Group(), {}, 1).bytes("embed.weight", "param"));
}

TEST(StoreTest, RefusesToSaveWhatIsNotFinite) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  TestState state(comm::Group(), {}, 2);
  const float infinity = std::numeric_limits<float>::infinity();
  std::memcpy(state.bytes("embed.weight", "adam_v").data() + 12, &infinity, 4);
  EXPECT_THROW(run.store.save(contents_at(2), state.dict()), NumericError);
  EXPECT_THAT(message_of([&] { run.store.save(contents_at(2), state.dict()); }),
              HasSubstr("embed.weight (adam_v) holds a value that is not finite at element 3"));
  EXPECT_THAT(entries(scratch.run() / "checkpoints"), ElementsAre("LATEST", step_name(1)));
}

TEST(StoreTest, RefusesStateThatIsNotWellFormed) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  const auto refuses = [&](const std::function<void(parallel::StateDict&)>& change) {
    TestState state(comm::Group(), {}, 5);
    change(state.dict());
    EXPECT_THROW(run.store.save(contents_at(1), state.dict()), BugError);
  };
  refuses([](auto& dict) { dict[0].name = "../x"; });
  refuses([](auto& dict) { dict[0].data = dict[0].data.first(4); });
  refuses([](auto& dict) { dict[0].offset = {1, 0}; });
  refuses([](auto& dict) { dict.push_back(dict[0]); });
  EXPECT_TRUE(list_steps(scratch.run() / "checkpoints").empty());
}

class StoreErrnoTest : public testing::TestWithParam<std::string> {};

TEST_P(StoreErrnoTest, AFailureLeavesTheEarlierOnesAndTheNextSaveWorks) {
  const auto& name = GetParam();
  const Scratch scratch;
  const int hit = name == "mid-retention" ? 1 : 3;
  SingleRun run(scratch.run(), fmt::format("{}:{}=errno", name, hit));
  run.save(1);
  run.save(2);
  if (committed_at(name)) {
    EXPECT_EQ(run.save(3).folder, scratch.step(3));
    EXPECT_TRUE(run.resumes_at(3));
  } else {
    EXPECT_THROW(run.save(3), IoError);
    EXPECT_TRUE(run.resumes_at(2));
  }
  EXPECT_GE(run.points.visits().at(name), hit);
  EXPECT_TRUE(entries(scratch.run() / "checkpoints", ".staging").empty());
  run.save(4);
  EXPECT_TRUE(run.resumes_at(4));
  EXPECT_EQ(entries(scratch.run() / "checkpoints", "step-").size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(AtEveryPoint, StoreErrnoTest, testing::ValuesIn(save_failpoints()), [](const auto& info) {
  auto name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(StoreDiskTest, AFullDiskIsReportedBeforeAnythingIsWritten) {
  const Scratch scratch;
  std::filesystem::create_directory(scratch.run());
  if (::mount("tmpfs", scratch.run().c_str(), "tmpfs", 0, "size=200k") != 0)
    GTEST_SKIP() << "mounting a tmpfs needs root and CAP_SYS_ADMIN";
  {
    SingleRun run(scratch.run());
    run.save(1);
    EXPECT_TRUE(run.resumes_at(1));
    spill(scratch.run() / "ballast", std::string(170 << 10, 'x'));
    EXPECT_THROW(run.save(2), IoError);
    const auto message = message_of([&] { run.save(2); });
    EXPECT_THAT(message, HasSubstr("(the checkpoint has "));
    EXPECT_THAT(message, HasSubstr(scratch.run().string()));
    EXPECT_TRUE(run.resumes_at(1));
    EXPECT_TRUE(entries(scratch.run() / "checkpoints", ".staging").empty());
    std::filesystem::remove(scratch.run() / "ballast");
    run.save(2);
    EXPECT_TRUE(run.resumes_at(2));
  }
  ::umount2(scratch.run().c_str(), MNT_DETACH);
}

TEST(StoreDiskTest, AFileSizeLimitIsAnErrorWithThePath) {
  const Scratch scratch;
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    SingleRun run(scratch.run());
    run.save(1);
    const rlimit limit{2000, RLIM_INFINITY};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto message = message_of([&] { run.save(2); });
    const bool good = message.find("rank-00000.safetensors") != std::string::npos &&
                      message.find("File too large") != std::string::npos && run.resumes_at(1) &&
                      entries(scratch.run() / "checkpoints", ".staging").empty();
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace conclave::checkpoint
