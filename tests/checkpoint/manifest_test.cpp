// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/manifest.h"

#include <gmock/gmock.h>

#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

// Gives a changed manifest a correct checksum again: what a careful attacker, or a bug, would write.
std::string sealed(nlohmann::ordered_json json) {
  json.erase("xxh3");
  auto text = json.dump();
  text.pop_back();
  return text + ",\"xxh3\":\"" + xxh3(text).hex() + "\"}\n";
}

struct Change {
  const char* name;
  std::function<void(nlohmann::ordered_json&)> make;
  const char* why;
};

std::vector<Change> changes() {
  using J = nlohmann::ordered_json;
  return {
      {"Format", [](J& m) { m["format"] = "other"; }, "not a manifest"},
      {"Version", [](J& m) { m["version"] = 2; }, "version 2"},
      {"MissingStep", [](J& m) { m.erase("step"); }, "'step' is missing"},
      {"NegativeStep", [](J& m) { m["step"] = -1; }, "whole number"},
      {"RunIsNumber", [](J& m) { m["run"] = 1; }, "'run' is not a text"},
      {"StateDigest", [](J& m) { m["state"] = std::string(32, '0'); }, "state digest"},
      {"StateNotHex", [](J& m) { m["state"] = "zz"; }, "not an XXH3"},
      {"ModelDigest", [](J& m) { m["config"]["model"]["values"]["hidden_size"] = 1; }, "model configuration"},
      {"FilesNotList", [](J& m) { m["files"] = 1; }, "'files' is not a list"},
      {"PathClimbs", [](J& m) { m["files"][0]["name"] = "../x"; }, "no file name"},
      {"PathAbsolute", [](J& m) { m["files"][0]["name"] = "/etc/passwd"; }, "no file name"},
      {"PathHidden", [](J& m) { m["files"][0]["name"] = "."; }, "no file name"},
      {"FileTwice", [](J& m) { m["files"].push_back(m["files"][0]); }, "listed twice"},
      {"FileHuge", [](J& m) { m["files"][0]["size"] = int64_t{1} << 60; }, "block checksums"},
      {"BlockMissing", [](J& m) { m["files"][0]["crc32c"] = J::array(); }, "block checksums"},
      {"BlockTooBig", [](J& m) { m["files"][0]["crc32c"] = {int64_t{1} << 32}; }, "32 bits"},
      {"NoSuchFile", [](J& m) { m["tensors"][0]["chunks"][0]["file"] = 9; }, "not listed"},
      {"BehindTheFile", [](J& m) { m["tensors"][0]["chunks"][0]["begin"] = int64_t{1} << 62; }, "behind the end"},
      {"LengthWrong", [](J& m) { m["tensors"][0]["chunks"][0]["length"] = 16; }, "do not make"},
      {"ShapeOverflow",
       [](J& m) {
         m["tensors"][0]["chunks"][0]["shape"] = {int64_t{1} << 40, int64_t{1} << 40};
       },
       "do not make"},
      {"ChunkGone", [](J& m) { m["tensors"][0]["chunks"] = J::array(); }, "0 of"},
      {"ChunkTwice", [](J& m) { m["tensors"][0]["chunks"].push_back(m["tensors"][0]["chunks"][0]); }, "more elements"},
      {"ChunkMoved", [](J& m) { m["tensors"][0]["chunks"][0]["offset"][0] = 1; }, "outside"},
      {"TensorTwice", [](J& m) { m["tensors"].insert(m["tensors"].begin(), m["tensors"][0]); }, "listed twice"},
      {"TensorName", [](J& m) { m["tensors"][0]["name"] = "a/../b"; }, "no tensor name"},
      {"TensorType", [](J& m) { m["tensors"][0]["dtype"] = "F1"; }, "element type"},
      {"Deep",
       [](J& m) {
         J* at = &m["extra"]["x"];
         for (int i = 0; i < 40; ++i) at = &(*at)["x"];
         *at = 1;
       },
       "nested deeper"},
      {"ExtraIsGone", [](J& m) { m.erase("extra"); }, "'extra' is missing"},
  };
}

class ManifestHostileTest : public testing::TestWithParam<Change> {};

TEST_P(ManifestHostileTest, IsRefusedEvenWithACorrectChecksum) {
  const Scratch scratch;
  SingleRun(scratch.run()).save(1);
  auto json = nlohmann::ordered_json::parse(slurp(scratch.step(1) / "MANIFEST.json"));
  ASSERT_NO_THROW(parse_manifest(sealed(json), "m"));
  GetParam().make(json);
  EXPECT_THROW(parse_manifest(sealed(json), "m"), DataError);
  EXPECT_THAT(message_of([&] { parse_manifest(sealed(json), "m"); }), testing::HasSubstr(GetParam().why));
}

INSTANTIATE_TEST_SUITE_P(Field, ManifestHostileTest, testing::ValuesIn(changes()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ManifestTest, SurvivesWritingAndReading) {
  const Scratch scratch;
  SingleRun(scratch.run()).save(1);
  const auto text = slurp(scratch.step(1) / "MANIFEST.json");
  EXPECT_EQ(manifest_text(parse_manifest(text, "m")), text);
}

TEST(ManifestTest, EveryChangedByteAndEveryTruncationShows) {
  const Scratch scratch;
  SingleRun(scratch.run()).save(1);
  const auto text = slurp(scratch.step(1) / "MANIFEST.json");
  for (size_t i = 0; i < text.size(); ++i) {
    auto changed = text;
    changed[i] ^= 0x20;  // also turns letters between upper and lower case
    ASSERT_THROW(parse_manifest(changed, "m"), DataError) << i;
  }
  for (size_t size = 0; size < text.size(); size += 7)
    ASSERT_THROW(parse_manifest(text.substr(0, size), "m"), DataError);
  EXPECT_THROW(parse_manifest(text + " ", "m"), DataError);
}

TEST(ManifestTest, AKeyGivenTwiceIsRefused) {
  const std::string text = R"({"a":{"b":1},"a":2)";
  EXPECT_THROW(parse_json(text + "}", "x"), DataError);
  EXPECT_THAT(message_of([] { parse_json(R"({"a":{"b":1,"b":1}})", "x"); }),
              testing::HasSubstr("\"b\" is given twice"));
  EXPECT_NO_THROW(parse_json(R"({"a":{"b":1},"b":1})", "x"));
}

TEST(ManifestTest, ADifferenceNamesEveryLeaf) {
  EXPECT_EQ(difference({{"a", 1}, {"b", {{"c", "x"}}}}, {{"a", 1}, {"b", {{"c", "x"}}}}), "");
  // A key that is newer than the record stood for its default.
  EXPECT_EQ(difference({{"a", 1}}, {{"a", 1}, {"b", {{"c", 2}}}}, {{"a", 0}, {"b", {{"c", 2}}}}), "");
  EXPECT_EQ(difference({{"a", 1}}, {{"a", 1}, {"b", {{"c", 3}}}}, {{"a", 0}, {"b", {{"c", 2}}}}), "b.c: 2, now 3");
  EXPECT_EQ(difference({{"a", 1}, {"b", {{"c", "x"}}}}, {{"a", 2}, {"d", nullptr}}),
            "a: 1, now 2; b.c: \"x\", now \"absent\"; d: \"absent\", now null");
}

}  // namespace
}  // namespace conclave::checkpoint
