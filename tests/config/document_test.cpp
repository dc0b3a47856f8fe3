// SPDX-License-Identifier: Apache-2.0
#include "config/document.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "config/config_files.h"
#include "config/fields.h"
#include "config/yaml.h"

namespace conclave::config {
namespace {

using testing::HasSubstr;
using Kind = Override::Kind;

struct Part {
  int64_t x = 1;
  int64_t y = 2;
  std::string text = "t";
  std::vector<int64_t> list;
  std::optional<int64_t> derived;
  void fields(auto&& field) {
    field("x", x, "");
    field("y", y, "");
    field("text", text, "");
    field("list", list, "");
    field("derived", derived, "");
  }
};
struct Whole {
  Part a;
  Part b;
  void fields(auto&& field) {
    field("a", a, "");
    field("b", b, "");
  }
};

class Document : public testing::Test {
 protected:
  Whole load(const std::string& text, const std::vector<Override>& overrides = {}) {
    Problems problems;
    root_ = load_document(files_.write("run.yaml", text), overrides, schema_, problems);
    Whole whole;
    Reader(schema_, problems).read(root_, whole, "");
    problems.throw_if_any();
    return whole;
  }
  std::string refusal(const std::string& text, const std::vector<Override>& overrides = {}) {
    return config_error([&] { load(text, overrides); });
  }
  std::string where(const std::string& path) {
    std::string place = origin_of(root_, path).where();
    const size_t at = place.find(files_.directory().string());
    return at == std::string::npos ? place : place.erase(at, files_.directory().string().size() + 1);
  }

  const Schema schema_ = describe<Whole>();
  ConfigFiles files_;
  Node root_;
};

TEST_F(Document, IncludesMergeKeyByKeyAndLaterWins) {
  files_.write("base/one.yaml", "a: {x: 10, y: 20, list: [1, 2]}\nb: {x: 1}\n");
  files_.write("base/two.yaml", "include: [three.yaml]\na: {y: 21}\n");
  files_.write("base/three.yaml", "a: {text: deep}\n");
  const Whole whole = load("include: [base/one.yaml, base/two.yaml]\na: {x: 11, list: [3]}\n");
  EXPECT_EQ(whole.a.x, 11);
  EXPECT_EQ(whole.a.y, 21);
  EXPECT_EQ(whole.a.text, "deep");
  EXPECT_THAT(whole.a.list, testing::ElementsAre(3));
  EXPECT_EQ(whole.b.x, 1);
  EXPECT_EQ(where("a.x"), "run.yaml:2:8");
  EXPECT_EQ(where("a.y"), "base/two.yaml:2:8");
  EXPECT_EQ(where("a.text"), "base/three.yaml:1:11");
}

TEST_F(Document, IncludesThatCannotBeAreRefused) {
  files_.write("loop.yaml", "include: [run.yaml]\n");
  EXPECT_THAT(refusal("include: [loop.yaml]\n"), HasSubstr("includes itself"));
  EXPECT_THAT(refusal("include: [run.yaml]\n"), HasSubstr("includes itself"));
  EXPECT_THAT(refusal("include: [none.yaml]\n"), HasSubstr("run.yaml:1:11: include: there is no file"));
  EXPECT_THAT(refusal("include: base.yaml\n"), HasSubstr("expected a list of files"));
  EXPECT_THAT(refusal("include: [[a]]\n"), HasSubstr("expected the name of a file"));
  EXPECT_THAT(refusal("- a\n- b\n"), HasSubstr("a configuration consists of sections"));
  for (int i = 0; i < 10; ++i) {  // each includes the next twice
    const std::string next = "d" + std::to_string(i + 1) + ".yaml";
    files_.write("d" + std::to_string(i) + ".yaml", "include: [" + next + ", " + next + "]\n");
  }
  files_.write("d10.yaml", "a: {x: 1}\n");
  EXPECT_THAT(refusal("include: [d0.yaml]\n"), HasSubstr("more than 64 files"));
}

TEST_F(Document, AnIncludedFileAloneSuffices) {
  files_.write("one.yaml", "a: {x: 10}\n");
  EXPECT_EQ(load("include: [one.yaml]\n").a.x, 10);
  EXPECT_EQ(load("").a.x, 1);
}

TEST_F(Document, OverridesAreAppliedInOrder) {
  const std::string list = files_.write("list.yaml", "[7, 8]\n").string();
  const Whole whole = load("a: {x: 5, y: 6, list: [1, 2]}\n", {{Kind::kSet, "a.x=50"},
                                                               {Kind::kSet, "a.list[1]=20"},
                                                               {Kind::kSet, "a.list[2]=30"},
                                                               {Kind::kUnset, "a.y"},
                                                               {Kind::kSetFile, "b.list=" + list},
                                                               {Kind::kSet, "b.text=p=q"}});
  EXPECT_EQ(whole.a.x, 50);
  EXPECT_EQ(whole.a.y, 2);
  EXPECT_THAT(whole.a.list, testing::ElementsAre(1, 20, 30));
  EXPECT_THAT(whole.b.list, testing::ElementsAre(7, 8));
  EXPECT_EQ(whole.b.text, "p=q");
  EXPECT_EQ(where("a.x"), "--set #1");
  EXPECT_EQ(where("b.list"), "list.yaml:1:1");
  EXPECT_EQ(load("", {{Kind::kUnset, "a.x"}, {Kind::kSet, "a.x=9"}}).a.x, 9);
  EXPECT_EQ(load("", {{Kind::kSet, "a.x=9"}, {Kind::kUnset, "a.x"}}).a.x, 1);
  EXPECT_EQ(load("a: {list: [1, 2]}", {{Kind::kUnset, "a.list[0]"}}).a.list, std::vector<int64_t>{2});
  EXPECT_EQ(load("", {{Kind::kSet, "a={x: 3, text: \"q: r\"}"}}).a.text, "q: r");
}

TEST_F(Document, OverridesThatCannotBeAreRefused) {
  EXPECT_THAT(refusal("", {{Kind::kSet, "a.x"}}), HasSubstr("expected --set path=value"));
  EXPECT_THAT(refusal("", {{Kind::kSet, "a..x=1"}}), HasSubstr("'a..x' is no path"));
  EXPECT_THAT(refusal("", {{Kind::kSet, "a.list[x]=1"}}), HasSubstr("is no path"));
  EXPECT_THAT(refusal("", {{Kind::kSet, "=1"}}), HasSubstr("is no path"));
  EXPECT_THAT(refusal("", {{Kind::kSet, "a.list[0]=1"}}), HasSubstr("the list is not written"));
  EXPECT_THAT(refusal("a: {list: [1]}", {{Kind::kSet, "a.list[5]=1"}}),
              HasSubstr("beyond the list, which has 1 items"));
  EXPECT_THAT(refusal("a: {x: 1}", {{Kind::kSet, "a.x.y=1"}}), HasSubstr("which is no section"));
  EXPECT_THAT(refusal("", {{Kind::kSet, "a.x=[1"}}), HasSubstr("left open"));
  EXPECT_THAT(refusal("", {{Kind::kUnset, "a.xx"}}), HasSubstr("--unset #1: a.xx: unknown key (did you mean a.x?)"));
  EXPECT_THAT(refusal("", {{Kind::kSetFile, "a.x=/none.yaml"}}), HasSubstr("/none.yaml: cannot be opened"));
  const std::string message = refusal("", {{Kind::kSet, "a.y=3"}, {Kind::kSet, "a.x=ab"}});
  EXPECT_THAT(message, HasSubstr("--set #2: a.x: expected a whole number"));
  EXPECT_THAT(message, HasSubstr("       | a.x=ab\n       |     ^^"));
}

TEST_F(Document, ReferencesTakeOtherValuesAndTheEnvironment) {
  ::setenv("CONCLAVE_TEST_X", "2k", 1);
  ::setenv("CONCLAVE_TEST_EMPTY", "", 1);
  ::unsetenv("CONCLAVE_TEST_NONE");
  const Whole whole = load(
      "a: {x: \"${env:CONCLAVE_TEST_X}\", y: \"${b.x}\", text: \"p-${a.x}-${env:CONCLAVE_TEST_NONE:-q}-$${z}\"}\n"
      "b:\n  x: ${b.y}\n  y: ${a.x}\n  list: [\"${a.x}\", 1]\n  text: ${env:CONCLAVE_TEST_EMPTY:-r}\n");
  EXPECT_EQ(whole.a.x, 2000);
  EXPECT_EQ(whole.a.y, 2000);
  EXPECT_EQ(whole.a.text, "p-2k-q-${z}");
  EXPECT_EQ(whole.b.x, 2000);
  EXPECT_THAT(whole.b.list, testing::ElementsAre(2000, 1));
  EXPECT_EQ(whole.b.text, "r");
  EXPECT_EQ(load("a: {x: \"${b.y}\"}").a.x, 2);  // a default
  EXPECT_EQ(load("a: {x: \"${b.y}\"}", {{Kind::kSet, "b.y=${a.y}"}, {Kind::kSet, "a.y=77"}}).a.x, 77);
  load("a: {x: \"${env:CONCLAVE_TEST_X}\"}");
  EXPECT_EQ(where("a.x"), "run.yaml:1:8 (environment CONCLAVE_TEST_X)");
}

TEST_F(Document, ReferencesThatCannotBeAreRefused) {
  ::unsetenv("CONCLAVE_TEST_NONE");
  ::setenv("CONCLAVE_TEST_BYTES", "\xFF", 1);
  EXPECT_THAT(refusal("a: {x: \"${b.x}\"}\nb: {x: \"${a.x}\"}\n"), HasSubstr("refers to itself"));
  EXPECT_THAT(refusal("a: {x: \"${a.x}\"}\n"), HasSubstr("refers to itself"));
  EXPECT_THAT(refusal("a: {x: \"${b.z}\"}\n"), HasSubstr("there is no key b.z (did you mean b.x?)"));
  EXPECT_THAT(refusal("a: {x: \"${b}\"}\nb: {x: 1}\n"), HasSubstr("b is a section; only single values"));
  EXPECT_THAT(refusal("a: {x: \"${a.derived}\"}\n"), HasSubstr("its default is derived"));
  EXPECT_THAT(refusal("a: {x: \"${env:CONCLAVE_TEST_NONE}\"}\n"), HasSubstr("CONCLAVE_TEST_NONE is not set"));
  EXPECT_THAT(refusal("a: {text: \"${env:CONCLAVE_TEST_BYTES}\"}\n"), HasSubstr("does not hold text"));
  EXPECT_THAT(refusal("a: {text: \"${env:}\"}\n"), HasSubstr("is no name of an environment variable"));
  EXPECT_THAT(refusal("a: {text: \"${a.x\"}\n"), HasSubstr("'${' without '}'"));
  std::string doubling = "a:\n  list: [\"1\"";
  for (int i = 0; i < 40; ++i)
    doubling += ", \"${a.list[" + std::to_string(i) + "]}${a.list[" + std::to_string(i) + "]}\"";
  EXPECT_THAT(refusal(doubling + "]\n"), HasSubstr("references expand to more than"));
  std::string chain = "a:\n  list: [\"${a.list[1]}\"";
  for (int i = 2; i < 5000; ++i) chain += ", \"${a.list[" + std::to_string(i) + "]}\"";
  EXPECT_THAT(refusal(chain + ", 1]\n"), HasSubstr("a chain of more than 16 references"));
}

}  // namespace
}  // namespace conclave::config
