// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

const char* const kShard = "rank-00000.safetensors";

struct Damage {
  const char* name;
  // Changes the checkpoint of step 2; `run` also holds step 1 with files of the same size.
  std::function<void(const Scratch& run)> make;
};

// Rewrites one file of step 2.
std::function<void(const Scratch&)> edit(const std::string& name, const std::function<void(std::string&)>& change) {
  return [=](const Scratch& scratch) {
    auto bytes = slurp(scratch.step(2) / name);
    change(bytes);
    spill(scratch.step(2) / name, bytes);
  };
}

size_t data_begin(const std::string& bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  return 8 + length;
}

std::vector<Damage> damages() {
  std::vector<Damage> all = {
      {"FirstDataByte", edit(kShard, [](auto& b) { b[data_begin(b)] ^= 1; })},
      {"MiddleDataByte", edit(kShard, [](auto& b) { b[(data_begin(b) + b.size()) / 2] ^= 0x40; })},
      {"LastDataByte", edit(kShard, [](auto& b) { b.back() ^= 0x80; })},
      {"HeaderLength", edit(kShard, [](auto& b) { b[0] ^= 8; })},
      {"HeaderDigit", edit(kShard, [](auto& b) { b[b.find("data_offsets") + 15] ^= 1; })},
      {"HeaderPadding", edit(kShard,
                             [](auto& b) {
                               b.insert(data_begin(b), "        ");
                               b[0] = static_cast<char>(b[0] + 8);
                             })},
      {"ZeroedPage",
       edit(kShard, [](auto& b) { std::fill(b.begin() + static_cast<long>(data_begin(b)), b.end(), '\0'); })},
      {"SwapWithThePreviousStep", [](const Scratch& s) { spill(s.step(2) / kShard, slurp(s.step(1) / kShard)); }},
      {"ManifestOfThePreviousStep",
       [](const Scratch& s) { spill(s.step(2) / "MANIFEST.json", slurp(s.step(1) / "MANIFEST.json")); }},
      {"WholePreviousStep",
       [](const Scratch& s) {
         std::filesystem::remove_all(s.step(2));
         std::filesystem::copy(s.step(1), s.step(2), std::filesystem::copy_options::recursive);
       }},
      {"FolderIsALink",
       [](const Scratch& s) {
         std::filesystem::rename(s.step(2), s.where() / "moved");
         std::filesystem::create_directory_symlink(s.where() / "moved", s.step(2));
       }},
      {"FolderIsAFile", [](const Scratch& s) { spill(s.step(2), "x"); }},
      {"FolderIsEmpty",
       [](const Scratch& s) {
         std::filesystem::remove_all(s.step(2));
         std::filesystem::create_directory(s.step(2));
       }},
      {"ManifestDigit", edit("MANIFEST.json", [](auto& b) { b[b.find("\"tokens\":") + 9] ^= 1; })},
      {"ManifestBrace", edit("MANIFEST.json", [](auto& b) { b[0] = '['; })},
      {"ManifestChecksum", edit("MANIFEST.json", [](auto& b) { b[b.size() - 10] ^= 1; })},
  };
  for (const std::string file : {kShard, "MANIFEST.json"}) {
    static std::list<std::string> names;
    const auto add = [&](const std::string& what, std::function<void(const Scratch&)> make) {
      all.push_back({names.emplace_back((file == kShard ? "Shard" : "Manifest") + what).c_str(), std::move(make)});
    };
    add("ShortByOne", edit(file, [](auto& b) { b.pop_back(); }));
    add("ShortByHalf", edit(file, [](auto& b) { b.resize(b.size() / 2); }));
    add("Empty", edit(file, [](auto& b) { b.clear(); }));
    add("OneByteMore", edit(file, [](auto& b) { b += 'x'; }));
    add("Deleted", [=](const Scratch& s) { std::filesystem::remove(s.step(2) / file); });
    add("IsAFolder", [=](const Scratch& s) {
      std::filesystem::remove(s.step(2) / file);
      std::filesystem::create_directory(s.step(2) / file);
    });
    add("IsALink", [=](const Scratch& s) {
      std::filesystem::rename(s.step(2) / file, s.where() / file);
      std::filesystem::create_symlink(s.where() / file, s.step(2) / file);
    });
    add("IsAPipe", [=](const Scratch& s) {
      std::filesystem::remove(s.step(2) / file);
      ::mkfifo((s.step(2) / file).c_str(), 0644);
    });
  }
  return all;
}

class CorruptionTest : public testing::TestWithParam<Damage> {};

TEST_P(CorruptionTest, IsFoundAndThePreviousCheckpointIsUsed) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  run.save(2);
  ASSERT_TRUE(run.resumes_at(2));
  GetParam().make(scratch);
  EXPECT_TRUE(run.resumes_at(1));
}

INSTANTIATE_TEST_SUITE_P(Of, CorruptionTest, testing::ValuesIn(damages()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(CorruptionFlipTest, EveryOfThreeHundredFlippedBitsIsFound) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  const Random random(11, Purpose::kTest);
  int found = 0;
  for (uint64_t trial = 0; trial < 300; ++trial) {
    const auto file = scratch.step(1) / (trial % 2 == 0 ? kShard : "MANIFEST.json");
    const auto good = slurp(file);
    auto bad = good;
    const auto bit = random.bits(trial) % (bad.size() * 8);
    bad[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    spill(file, bad);
    TestState state(comm::Group(), {}, 3);
    EXPECT_THROW(run.store.resume(request(), state.dict()), NoCheckpointError) << file << " bit " << bit;
    const bool untouched = state.same_as(TestState(comm::Group(), {}, 3));
    EXPECT_TRUE(untouched) << "used before it was verified";
    found += untouched;
    spill(file, good);
  }
  EXPECT_EQ(found, 300);
  EXPECT_TRUE(run.resumes_at(1));
}

// Without the full pass over the files, what is loaded is still checked as it is read.
TEST(CorruptionFlipTest, TheFastCheckStillFindsDamageInWhatItLoads) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  auto bytes = slurp(scratch.step(1) / kShard);
  bytes[data_begin(bytes) + 5] ^= 4;
  spill(scratch.step(1) / kShard, bytes);
  auto fast = request();
  fast.load.full = false;
  TestState state(comm::Group(), {}, 3);
  EXPECT_THROW(run.store.resume(fast, state.dict()), NoCheckpointError);
}

}  // namespace
}  // namespace conclave::checkpoint
