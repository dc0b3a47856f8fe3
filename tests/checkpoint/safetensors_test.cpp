// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>

#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

std::string length_prefix(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

std::string file_of(const std::string& header, const std::string& data = "") {
  return length_prefix(header.size()) + header + data;
}

std::string floats(int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    const auto value = static_cast<float>(i);
    bytes.append(reinterpret_cast<const char*>(&value), 4);
  }
  return bytes;
}

// The file of the reference implementation's own unit test.
TEST(SafetensorsGoldenTest, ReadsTheReferenceFile) {
  const Scratch scratch;
  const std::string header = R"({"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}})";
  ASSERT_EQ(header.size(), 64u);
  spill(scratch.where() / "x", file_of(header, floats(6)));
  const SafetensorsFile file(scratch.where() / "x");
  ASSERT_EQ(file.tensors().size(), 1u);
  EXPECT_EQ(file.at("attn.0").shape, (Shape{1, 2, 3}));
  EXPECT_EQ(file.at("attn.0").begin, 72);
  std::vector<float> values(6);
  file.read("attn.0", std::as_writable_bytes(std::span(values)));
  EXPECT_THAT(values, testing::ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THROW(file.at("attn.1"), DataError);
}

// Bytes that safetensors 0.8 (Python) writes for the same tensors with metadata={"format": "pt"}.
TEST(SafetensorsGoldenTest, WritesTheBytesOfTheReferenceWriter) {
  std::vector<TensorInfo> tensors = {{"b", "F32", {2}, 0, 0},     {"a", "F32", {1}, 0, 0},    {"z", "I64", {}, 0, 0},
                                     {"half", "BF16", {3}, 0, 0}, {"y", "F64", {0, 4}, 0, 0}, {"i", "I32", {1}, 0, 0}};
  const auto head = lay_out_safetensors(tensors);
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"z":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("y":{"dtype":"F64","shape":[0,4],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]},)"
      R"("i":{"dtype":"I32","shape":[1],"data_offsets":[20,24]},)"
      R"("half":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}})";
  EXPECT_EQ(head.substr(8, json.size()), json);
  EXPECT_EQ(head.size() % 8, 0u);
  EXPECT_EQ(head.find_first_not_of(' ', 8 + json.size()), std::string::npos);
  EXPECT_EQ(head.substr(0, 8), length_prefix(head.size() - 8));
}

TEST(SafetensorsTest, ReadsForeignNamesMetadataPaddingAndEmptyTensors) {
  const Scratch scratch;
  spill(scratch.where() / "x", file_of(R"({"__metadata__":{"format":"pt","by":"ä"},"é/w [0]":)"
                                       R"({"data_offsets":[0,4],"shape":[4],"dtype":"U8"},)"
                                       R"("e":{"dtype":"BF16","shape":[0,7],"data_offsets":[4,4]}}   )",
                                       "abcd"));
  const SafetensorsFile file(scratch.where() / "x");
  EXPECT_EQ(file.metadata().at("by"), "ä");
  EXPECT_EQ(file.at("é/w [0]").bytes, 4);
  EXPECT_EQ(file.at("e").bytes, 0);
  EXPECT_THROW(SafetensorsFile(File::open(scratch.where() / "x"), NameRule::kOurs), DataError);
  spill(scratch.where() / "empty", file_of("{}"));
  EXPECT_TRUE(SafetensorsFile(scratch.where() / "empty").tensors().empty());
}

TEST(SafetensorsTest, NeedsARegularFile) {
  const Scratch scratch;
  EXPECT_THROW(SafetensorsFile(scratch.where() / "none"), IoError);
  EXPECT_THROW(SafetensorsFile{scratch.where()}, DataError);
  EXPECT_THROW(SafetensorsFile("/dev/zero"), DataError);
}

struct Hostile {
  const char* name;
  std::string bytes;
  const char* why;  // part of the message
};

std::string tensor(const std::string& fields) { return file_of("{\"a\":{" + fields + "}}", std::string(4, 'x')); }

std::vector<Hostile> hostile_files() {
  const std::string good = R"("dtype":"F32","shape":[1],"data_offsets":[0,4])";
  const auto two = [&](const std::string& a, const std::string& b, int size) {
    return file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":" + a + "},\"b\":{\"dtype\":\"U8\",\"shape\":" + b + "}}",
                   std::string(static_cast<size_t>(size), 'x'));
  };
  return {
      {"Empty", "", "too few"},
      {"SevenBytes", "1234567", "too few"},
      {"LengthAll", std::string(8, '\xff') + "{}", "claim"},
      {"LengthZero", file_of(""), "start with"},
      {"LengthOneTooMany", length_prefix(3) + "{}", "claim"},
      {"LengthAboveLimit", length_prefix(17 << 20) + std::string(18 << 20, ' '), "claim"},
      {"NotAnObject", file_of("[]"), "start with"},
      {"SpaceInFront", file_of(" {}"), "start with"},
      {"ByteOrderMark", file_of("\xef\xbb\xbf{}"), "start with"},
      {"NotClosed", file_of("{\"a\":"), "end with"},
      {"TextBehind", file_of("{} x}"), "JSON"},
      {"NewlineBehind", file_of("{}\n"), "end with"},
      {"NulByte", file_of(std::string("{}\0{}", 5)), "NUL"},
      {"BrokenUtf8", file_of("{\"\xff\":{" + good + "}}", "xxxx"), "JSON"},
      {"DuplicateName", file_of("{\"a\":{" + good + "},\"a\":{" + good + "}}", "xxxx"), "twice"},
      {"DuplicateField", tensor(R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])"), "twice"},
      {"MissingField", tensor(R"("dtype":"F32","shape":[1])"), "lacks"},
      {"UnknownField", tensor(good + R"(,"x":1)"), "unknown field"},
      {"UnknownType", tensor(R"("dtype":"F31","shape":[1],"data_offsets":[0,4])"), "not supported"},
      {"TypeIsNumber", tensor(R"("dtype":4,"shape":[1],"data_offsets":[0,4])"), "number where none"},
      {"TypeIsList", tensor(R"("dtype":["F32"],"shape":[1],"data_offsets":[0,4])"), "list where none"},
      {"ShapeIsText", tensor(R"("dtype":"F32","shape":"1","data_offsets":[0,4])"), "numbers belong"},
      {"ShapeIsNumber", tensor(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), "number where none"},
      {"ShapeNested", tensor(R"("dtype":"F32","shape":[[1]],"data_offsets":[0,4])"), "list where none"},
      {"Negative", tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), "sign"},
      {"MinusZero", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[-0,4])"), "sign"},
      {"Fraction", tensor(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), "whole number"},
      {"Exponent", tensor(R"("dtype":"F32","shape":[1e0],"data_offsets":[0,4])"), "whole number"},
      {"HugeExponent", tensor(R"("dtype":"F32","shape":[1e400],"data_offsets":[0,4])"), "JSON"},
      {"Beyond63Bits", tensor(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4])"), "beyond"},
      {"Beyond64Bits", tensor(R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4])"), "whole number"},
      {"ProductOverflow", tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4])"),
       "impossible"},
      {"ProductOverflowToZero", tensor(R"("dtype":"U8","shape":[8589934592,8589934592,2],"data_offsets":[0,4])"),
       "impossible"},
      {"NineDimensions", tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"), "8 dimensions"},
      {"OneOffset", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), "two numbers"},
      {"ThreeOffsets", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"), "two numbers"},
      {"EndsBeforeItBegins", tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "before it begins"},
      {"WrongSize", tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), "make"},
      {"BehindTheEnd", tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"), "behind the end"},
      {"ShortData", file_of("{\"a\":{" + good + "}}", "xxx"), "behind the end"},
      {"LongData", file_of("{\"a\":{" + good + "}}", "xxxxx"), "behind the last"},
      {"ZipBehind", file_of("{\"a\":{" + good + "}}", std::string("xxxxPK\x05\x06") + std::string(18, '\0')),
       "behind the last"},
      {"Hole", two(R"([2],"data_offsets":[0,2])", R"([2],"data_offsets":[3,5])", 5), "hole"},
      {"Overlap", two(R"([2],"data_offsets":[0,2])", R"([2],"data_offsets":[1,3])", 3), "overlap"},
      {"StartsLate", tensor(R"("dtype":"U8","shape":[3],"data_offsets":[1,4])"), "hole"},
      {"EmptyName", file_of("{\"\":{" + good + "}}", "xxxx"), "acceptable"},
      {"EscapeInName", file_of("{\"\\u001b[2J\":{" + good + "}}", "xxxx"), "acceptable"},
      {"NulInName", file_of("{\"a\\u0000\":{" + good + "}}", "xxxx"), "acceptable"},
      {"LongName", file_of("{\"" + std::string(2000, 'a') + "\":{" + good + "}}", "xxxx"), "acceptable"},
      {"MetadataNotText", file_of(R"({"__metadata__":{"a":1}})"), "number where none"},
      {"MetadataTooLong", file_of("{\"__metadata__\":{\"a\":\"" + std::string(5000, 'a') + "\"}}"), "limited"},
      {"TensorIsNull", file_of("{\"a\":null}"), "null"},
      {"TensorIsTrue", file_of("{\"a\":true}"), "boolean"},
      {"TensorIsList", file_of("{\"a\":[1]}"), "list where none"},
      {"Deep", file_of("{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}"), "list where none"},
      {"DeepObjects", file_of("{\"a\":{\"dtype\":{}}}"), "object where none"},
  };
}

class SafetensorsHostileTest : public testing::TestWithParam<Hostile> {};

TEST_P(SafetensorsHostileTest, IsRefusedWithPathAndReason) {
  const Scratch scratch;
  const auto where = scratch.where() / "x.safetensors";
  spill(where, GetParam().bytes);
  EXPECT_THROW(SafetensorsFile{where}, DataError);
  const auto message = message_of([&] { SafetensorsFile{where}; });
  EXPECT_THAT(message, testing::HasSubstr(GetParam().why));
  EXPECT_THAT(message, testing::HasSubstr(where.string()));
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Header, SafetensorsHostileTest, testing::ValuesIn(hostile_files()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace conclave::checkpoint
