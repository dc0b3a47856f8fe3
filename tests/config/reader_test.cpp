// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <rapidcheck/gtest.h>

#include "config/config_files.h"
#include "config/fields.h"
#include "config/yaml.h"

namespace conclave::config {

enum class Fruit { kApple, kPear };
template <>
struct EnumNames<Fruit> {
  static constexpr std::array<std::pair<std::string_view, Fruit>, 2> kNames{
      {{"apple", Fruit::kApple}, {"pear", Fruit::kPear}}};
};

namespace {

using testing::HasSubstr;
using testing::Not;

struct Inner {
  int64_t count = 3;
  std::optional<double> share;
  void fields(auto&& field) {
    field("count", count, "how many", kNotNegative);
    field("share", share, "part");
  }
};
struct Basket {
  std::string name;
  bool ripe = false;
  Fruit fruit = Fruit::kApple;
  Duration age{60};
  StepCount after{5, {}};
  Bytes size{1024};
  Reserved later;
  std::vector<double> weights = {0.5, 1};
  std::vector<Inner> items;
  IntOrList pieces = int64_t{1};
  std::variant<Inner, std::vector<int64_t>> mixed = Inner{};
  Inner inner;
  void fields(auto&& field) {
    field("name", name, "what it is called", kRequired);
    field("ripe", ripe, "ready");
    field("fruit", fruit, "kind");
    field("age", age, "since when", kNotNegative);
    field("after", after, "when");
    field("size", size, "how large");
    field("later", later, "reserved", Rule{.unbuilt = "not built"});
    field("weights", weights, "numbers", kPositive);
    field("items", items, "parts");
    field("pieces", pieces, "one or several", kPositive);
    field("mixed", mixed, "section or list");
    field("inner", inner, "a section");
  }
};

Node parse(const std::string& text, Problems& problems) {
  auto source = std::make_shared<Source>();
  source->name = "x.yaml";
  source->text = text;
  return parse_yaml(source, problems);
}
Basket read(const std::string& text) {
  Problems problems;
  const Schema schema = describe<Basket>();
  Basket basket;
  Reader(schema, problems).read(parse(text, problems), basket, "");
  problems.throw_if_any();
  return basket;
}
std::string refusal(const std::string& text) {
  return config_error([&] { read(text); });
}

TEST(Reader, ReadsEveryKindOfField) {
  const Basket basket = read(
      "name: 12\nripe: true\nfruit: pear\nage: 2h\nafter: 10%\nsize: 2KiB\nlater: null\nweights: [1, 2.5]\n"
      "items: [{count: 4k}, {share: 0.5}]\npieces: [1, 2]\nmixed: {count: 9}\ninner:\n");
  EXPECT_EQ(basket.name, "12");
  EXPECT_TRUE(basket.ripe);
  EXPECT_EQ(basket.fruit, Fruit::kPear);
  EXPECT_EQ(basket.age.seconds, 7200);
  EXPECT_EQ(basket.after.of(50), 5);
  EXPECT_EQ(basket.size.bytes, 2048);
  EXPECT_THAT(basket.weights, testing::ElementsAre(1, 2.5));
  EXPECT_EQ(basket.items[0].count, 4000);
  EXPECT_EQ(basket.items[1].share, 0.5);
  EXPECT_THAT(std::get<1>(basket.pieces), testing::ElementsAre(1, 2));
  EXPECT_EQ(std::get<Inner>(basket.mixed).count, 9);
  EXPECT_EQ(basket.inner.count, 3);
  EXPECT_THAT(std::get<1>(read("{name: a, mixed: [0, 1]}").mixed), testing::ElementsAre(0, 1));
}

TEST(Reader, ReportsAllProblemsAtOnceInOrder) {
  const std::string message = refusal("ripe: yes\nfruit: paer\nitems:\n  - {count: -1, shar: 2}\nage: soon\n");
  EXPECT_THAT(message, HasSubstr("invalid configuration: 6 problems"));
  EXPECT_THAT(message, HasSubstr("x.yaml:1:1: name: required, but not given"));
  EXPECT_THAT(message, HasSubstr("x.yaml:1:7: ripe: expected true or false; write true, found 'yes'"));
  EXPECT_THAT(message, HasSubstr("x.yaml:2:8: fruit: unknown value 'paer' (did you mean pear?); one of: apple, pear"));
  EXPECT_THAT(message, HasSubstr("x.yaml:4:13: items[0].count: must be at least 0, is -1"));
  EXPECT_THAT(message, HasSubstr("x.yaml:4:17: items[0].shar: unknown key (did you mean share?)"));
  EXPECT_LT(message.find("x.yaml:2:8"), message.find("x.yaml:4:13"));
}

TEST(Reader, PrintsTenProblemsAndTheNumberOfTheOthers) {
  std::string text = "name: a\n";
  for (int i = 0; i < 30; ++i) text += "zz" + std::to_string(i) + ": 1\n";
  const std::string message = refusal(text);
  EXPECT_THAT(message, HasSubstr("invalid configuration: 30 problems"));
  EXPECT_THAT(message, HasSubstr("zz9: "));
  EXPECT_THAT(message, Not(HasSubstr("zz10: ")));
  EXPECT_THAT(message, HasSubstr("... and 20 more"));
}

TEST(Reader, RefusesWrongShapes) {
  EXPECT_THAT(refusal("{name: [a]}"), HasSubstr("expected text, found a list"));
  EXPECT_THAT(refusal("{name: null}"), HasSubstr("expected text, found nothing (null)"));
  EXPECT_THAT(refusal("{name: ''}"), HasSubstr("required, but empty"));
  EXPECT_THAT(refusal("{name: a, weights: 1}"), HasSubstr("expected a list such as [a, b], found '1'"));
  EXPECT_THAT(refusal("{name: a, weights: [1, 0]}"), HasSubstr("weights[1]: must be greater than 0, is 0"));
  EXPECT_THAT(refusal("{name: a, inner: 3}"), HasSubstr("expected a section with keys, found '3'"));
  EXPECT_THAT(refusal("{name: a, inner: {count: {x: 1}}}"), HasSubstr("expected a single value, found a section"));
  EXPECT_THAT(refusal("{name: a, inner: {count: \"3\"}}"), HasSubstr("is quoted, so it is text; remove the quotes"));
  EXPECT_THAT(refusal("{name: a, later: 1}"), HasSubstr("later: not built"));
}

TEST(Reader, NamesWhereAMisplacedKeyBelongs) {
  EXPECT_THAT(refusal("{name: a, share: 1}"),
              HasSubstr("unknown key here; it exists as items[].share, mixed.share, inner.share"));
  EXPECT_THAT(refusal("{name: a, inner: {ripe: true}}"), HasSubstr("unknown key here; it exists as ripe"));
  EXPECT_THAT(refusal("{name: a, num_experts_per_tok: 2}"),
              HasSubstr("what other stacks call num_experts_per_tok is moe.top_k"));
  EXPECT_THAT(refusal("{name: a, inner: {wholly: 1}}"), HasSubstr("unknown key; valid here: count, share"));
}

TEST(Reader, WritesWhatItReads) {
  Basket basket =
      read("{name: 'yes', ripe: true, fruit: pear, age: 90, after: 2.5%, pieces: [3], items: [{share: 0.1}]}");
  basket.weights = {1.0 / 3, 1e-8};
  const std::string written = write_yaml(to_node(basket));
  EXPECT_EQ(write_yaml(to_node(read(written))), written);
  EXPECT_THAT(written, HasSubstr("name: \"yes\"\n"));
  EXPECT_THAT(written, HasSubstr("weights: [0.3333333333333333, 1e-08]\n"));
  EXPECT_THAT(written, HasSubstr("items:\n  - count: 3\n    share: 0.1\n"));
  EXPECT_EQ(read(written).weights, basket.weights);
}

TEST(Reader, TablesShowTypeDefaultAndMeaning) {
  const std::string tables = docs_tables(describe<Basket>());
  EXPECT_THAT(tables, HasSubstr("### `inner`: a section"));
  EXPECT_THAT(tables, HasSubstr("| `count` | integer | `3` | how many |"));
  EXPECT_THAT(tables, HasSubstr("| `share` | number | `null` | part |"));
}

TEST(Reader, GeneratedPartsOfAPageAreReplaced) {
  const std::string begin = "<!-- generated by `conclave config docs`: begin -->\n";
  const std::string end = "<!-- generated by `conclave config docs`: end -->";
  const std::string page = "a\n" + begin + "old\n" + end + "\nb\n";
  EXPECT_EQ(replace_generated(page, "conclave config docs", "new\n"), "a\n" + begin + "new\n" + end + "\nb\n");
  EXPECT_THROW(replace_generated(page, "conclave methods docs", "new"), UsageError);
  EXPECT_THROW(replace_generated("no markers", "conclave config docs", "new"), UsageError);
}

}  // namespace
}  // namespace conclave::config
