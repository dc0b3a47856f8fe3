// SPDX-License-Identifier: Apache-2.0
#include "config/yaml.h"

#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include <chrono>

#include "config/config_files.h"

namespace conclave::config {
namespace {

using testing::HasSubstr;

std::shared_ptr<const Source> source(std::string text) {
  auto made = std::make_shared<Source>();
  made->name = "x.yaml";
  made->text = std::move(text);
  return made;
}
Node parse(const std::string& text) {
  Problems problems;
  Node node = parse_yaml(source(text), problems);
  problems.throw_if_any();
  return node;
}
std::string refusal(const std::string& text) {
  return config_error([&] { parse(text); });
}
std::string repeat(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(Yaml, KnowsThePlaceOfEveryKeyAndValue) {
  const Node root = parse("a: 1\nb:\n  - {c: \"d\", e: [2, 3]}\n  - \xC3\xA9: f\n");
  EXPECT_EQ(find(root, "a")->origin.where(), "x.yaml:1:4");
  EXPECT_EQ(find(root, "b[0].c")->origin.where(), "x.yaml:3:9");
  EXPECT_TRUE(find(root, "b[0].c")->quoted);
  EXPECT_EQ(find(root, "b[0].e[1]")->origin.where(), "x.yaml:3:21");
  EXPECT_EQ(root.get("b")->list[1].map[0].origin.where(), "x.yaml:4:5");
  EXPECT_EQ(find(root, "b[2]"), nullptr);
}

TEST(Yaml, PutsTheCaretUnderCharactersNotBytes) {
  const Node root = parse("name: {\xC3\xA9: abc}\n");
  EXPECT_EQ(root.get("name")->map[0].value.origin.excerpt(),
            "     1 | name: {\xC3\xA9: abc}\n       |           ^^^\n");
}

TEST(Yaml, ShowsOnlyPartOfALongLine) {
  const Node root = parse("{a: " + std::string(5000, 'x') + ", b: here}");
  const std::string excerpt = root.get("b")->origin.excerpt();
  EXPECT_LT(excerpt.size(), 300u);
  EXPECT_THAT(excerpt, HasSubstr("b: here"));
}

TEST(Yaml, NullIsEmptyTildeOrTheWord) {
  for (const char* text : {"a:", "a: ~", "a: null"}) EXPECT_TRUE(parse(text).get("a")->is_null()) << text;
  EXPECT_FALSE(parse("a: \"null\"").get("a")->is_null());
  EXPECT_FALSE(parse("a: ''").get("a")->is_null());
}

TEST(Yaml, AcceptsByteOrderMarksAndWindowsLineEnds) {
  const ConfigFiles files;
  const auto text = read_source(files.write("bom.yaml",
                                            "\xEF\xBB\xBF"
                                            "a: 1\r\nb: 2\r\n"),
                                "bom.yaml");
  Problems problems;
  const Node root = parse_yaml(text, problems);
  EXPECT_EQ(root.get("a")->text, "1");
  EXPECT_EQ(root.get("b")->origin.where(), "bom.yaml:2:4");
}

TEST(Yaml, RefusesDuplicateKeysAndNamesTheFirst) {
  EXPECT_THAT(refusal("a:\n  b: 1\n  c: 2\n  b: 3\n"),
              HasSubstr("x.yaml:4:3: duplicate key 'b', already given in line 2"));
}

TEST(Yaml, RefusesWhatConfigurationsDoNotNeed) {
  EXPECT_THAT(refusal("a: &x 1\nb: *x\n"), HasSubstr("anchors and aliases are not read"));
  EXPECT_THAT(refusal("a: &x {b: 1}\n"), HasSubstr("anchors and aliases are not read"));
  EXPECT_THAT(refusal("a: !!int 1\n"), HasSubstr("tags are not read"));
  EXPECT_THAT(refusal("a: !mine [1]\n"), HasSubstr("tags are not read"));
  EXPECT_THAT(refusal("a: 1\n---\nb: 2\n"), HasSubstr("one YAML document"));
  EXPECT_THAT(refusal("? [a, b]\n: 1\n"), HasSubstr("expected a key, found a list"));
  EXPECT_THAT(refusal("a: 1\n\tb: 2\n"), HasSubstr("x.yaml:2:1: a tab in the indentation"));
  EXPECT_THAT(refusal("a: [1, 2\nb: 3\n"), HasSubstr("not valid YAML"));
  EXPECT_THAT(refusal("a: b: c\n"), HasSubstr("x.yaml:1:5: not valid YAML"));
}

TEST(Yaml, RefusesBytesThatAreNoText) {
  EXPECT_THAT(refusal("a: \xFF\n"), HasSubstr("x.yaml:1:4: byte 0xff at offset 3"));
  EXPECT_THAT(refusal("a: \xC0\xAF\n"), HasSubstr("is not text"));          // overlong
  EXPECT_THAT(refusal("a: \xED\xA0\x80\n"), HasSubstr("is not text"));      // surrogate
  EXPECT_THAT(refusal("a: \xF4\x90\x80\x80\n"), HasSubstr("is not text"));  // beyond Unicode
  EXPECT_THAT(refusal("a: \xE2\x82"), HasSubstr("is not text"));            // cut off
  EXPECT_THAT(refusal(std::string("a: 1\nb: \0", 10)), HasSubstr("x.yaml:2:4: byte 0x00"));
  EXPECT_THAT(refusal("a: \x04\n"), HasSubstr("byte 0x04"));  // yaml-cpp would take it for the end
  EXPECT_EQ(find_bad_byte("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80\t\r\n"), std::string_view::npos);
}

TEST(Yaml, FailsFastOnBombs) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(refusal(repeat("[", 100'000) + repeat("]", 100'000)), HasSubstr("deeper than 32"));
  EXPECT_THAT(refusal(repeat("{a: ", 100'000) + repeat("}", 100'000)), HasSubstr("deeper than 32"));
  EXPECT_THAT(refusal(repeat("[", 100'000)), HasSubstr("left open"));
  EXPECT_THAT(refusal(repeat("{a: ", 100'000)), HasSubstr("left open"));
  EXPECT_THAT(refusal(repeat("- ", 100'000)), HasSubstr("deeper than 32"));
  EXPECT_THAT(refusal(repeat("? ", 100'000)), HasSubstr("expected a key"));
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested += std::string(static_cast<size_t>(i), ' ') + "a:\n";
  EXPECT_THAT(refusal(nested), HasSubstr("deeper than 32"));
  EXPECT_THAT(refusal(std::string(kMaxBytes + 1, ' ')), HasSubstr("larger than 1024 KiB"));
  EXPECT_THAT(refusal("a: &a [x]\nb: &b [*a, *a]\n"), HasSubstr("anchors"));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 30.0);
}

TEST(Yaml, ReadsTheLargestFlatFileInTime) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse("a: [" + repeat("1,", 100'000) + "1]").get("a")->list.size(), 100'001u);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 30.0);
}

TEST(Yaml, FilesThatCannotBeReadAreNamed) {
  const ConfigFiles files;
  EXPECT_THAT(config_error([&] { read_source(files.directory() / "none.yaml", "none.yaml"); }),
              HasSubstr("none.yaml: cannot be opened (No such file"));
  EXPECT_THAT(config_error([&] { read_source(files.directory(), "dir"); }), HasSubstr("dir: is a directory"));
}

TEST(Yaml, WritesStringsSoThatTheyStayStrings) {
  for (const char* text :
       {"plain", "a/b-c.d", "null", "true", "yes", "12",  "1e3",      "",    " x",   "a: b",   "# no",
        "\"q\"", "a\nb",    "${x}", "-",    "~",   "nan", "\xC3\xA9", "[1]", ".inf", "C:\\dir"}) {
    Node root;
    root.kind = Node::Kind::kMap;
    root.map.push_back({"k", {}, scalar_node(text, true)});
    const std::string written = write_yaml(root);
    const Node back = parse(written);
    std::string expected = text;
    if (expected == "${x}") expected = "$${x}";  // read back as the literal by the references
    EXPECT_EQ(back.get("k")->text, expected) << written;
    EXPECT_FALSE(back.get("k")->is_null()) << written;
  }
  EXPECT_EQ(write_scalar(scalar_node("a/b", true)), "a/b");
  EXPECT_EQ(write_scalar(scalar_node("12", true)), "\"12\"");
}

RC_GTEST_PROP(Yaml, AnyTextSurvivesWritingAndReading, ()) {
  const auto text = *rc::gen::container<std::string>(rc::gen::inRange<char>(0x20, 0x7F));
  RC_PRE(text.find("${") == std::string::npos);
  Node root;
  root.kind = Node::Kind::kMap;
  root.map.push_back({"k", {}, scalar_node(text, true)});
  RC_ASSERT(parse(write_yaml(root)).get("k")->text == text);
}

RC_GTEST_PROP(Yaml, AnyBytesAreReadOrRefused, ()) {
  const auto text = *rc::gen::container<std::string>(rc::gen::elementOf(std::string("ab:-[]{}\n ,#\"'?&*!|>%@`~$1\t")));
  try {
    parse(text);
  } catch (const ConfigError&) {
  }
}

}  // namespace
}  // namespace conclave::config
