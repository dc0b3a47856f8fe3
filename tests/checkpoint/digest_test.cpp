// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/digest.h"

#include <gtest/gtest.h>

#include "checkpoint/box.h"
#include "checkpoint/crc32c.h"
#include "core/error.h"
#include "core/random.h"

namespace conclave::checkpoint {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// RFC 3720, appendix B.4, and the usual check value.
TEST(DigestTest, Crc32cGivesThePublishedAnswers) {
  for (const auto crc : {&crc32c, &crc32c_table}) {
    EXPECT_EQ(crc(0, bytes_of("123456789")), 0xE3069283u);
    EXPECT_EQ(crc(0, bytes_of(std::string(32, '\0'))), 0x8A9136AAu);
    EXPECT_EQ(crc(0, bytes_of(std::string(32, '\xff'))), 0x62A8AB43u);
    EXPECT_EQ(crc(0, bytes_of("")), 0u);
  }
}

TEST(DigestTest, Crc32cByInstructionEqualsTheTableAtEveryLengthAndContinues) {
  std::string text;
  for (uint64_t i = 0; i < 300; ++i) text += static_cast<char>(Random(1, Purpose::kTest).bits(i));
  for (size_t begin = 0; begin < 9; ++begin)
    for (size_t size = 0; size + begin <= text.size(); ++size) {
      const auto piece = bytes_of(text).subspan(begin, size);
      ASSERT_EQ(crc32c(0, piece), crc32c_table(0, piece));
      ASSERT_EQ(crc32c(crc32c(0, piece.first(size / 3)), piece.subspan(size / 3)), crc32c_table(0, piece));
    }
}

TEST(DigestTest, Xxh3IsThePublishedOneAndStreams) {
  EXPECT_EQ(xxh3("").hex(), "99aa06d3014798d86001c324468d497f");
  DigestStream stream;
  stream.update("12345");
  stream.update("");
  stream.update("6789");
  EXPECT_EQ(stream.finish(), xxh3("123456789"));
  EXPECT_EQ(digest_from_hex(xxh3("abc").hex()), xxh3("abc"));
  for (const char* bad :
       {"", "99aa06d3014798d86001c324468d497", "99AA06d3014798d86001c324468d497f", "99aa06d3014798d86001c324468d497fx"})
    EXPECT_THROW(digest_from_hex(bad), DataError) << bad;
}

TEST(DigestTest, ATensorsDigestDependsOnAllThatItIs) {
  const std::vector<int64_t> shape = {2, 3}, turned = {3, 2};
  const auto base = tensor_digest({"a", "param"}, "F32", shape, bytes_of("abcd"));
  EXPECT_EQ(base, tensor_digest({"a", "param"}, "F32", shape, bytes_of("abcd")));
  EXPECT_NE(base, tensor_digest({"b", "param"}, "F32", shape, bytes_of("abcd")));
  EXPECT_NE(base, tensor_digest({"a", "adam_m"}, "F32", shape, bytes_of("abcd")));
  EXPECT_NE(base, tensor_digest({"a", "param"}, "I32", shape, bytes_of("abcd")));
  EXPECT_NE(base, tensor_digest({"a", "param"}, "F32", turned, bytes_of("abcd")));
  EXPECT_NE(base, tensor_digest({"a", "param"}, "F32", shape, bytes_of("abce")));
}

TEST(DigestTest, AStatesDigestIgnoresTheOrderInWhichTensorsAreFound) {
  const std::pair<TensorKey, Digest> a{{"a", "param"}, {1, 2}}, b{{"b", "param"}, {3, 4}}, m{{"a", "adam_m"}, {5, 6}};
  EXPECT_EQ(state_digest({a, b, m}), state_digest({m, b, a}));
  EXPECT_NE(state_digest({a, b, m}), state_digest({a, b}));
  auto swapped = a, other = m;
  std::swap(swapped.second, other.second);
  EXPECT_NE(state_digest({a, b, m}), state_digest({swapped, b, other}));
}

TEST(BoxTest, TilesExactlyOnceOrSaysWhy) {
  const Shape shape = {4, 6};
  EXPECT_NO_THROW(check_tiling(shape, {{{0, 0}, {4, 2}}, {{0, 2}, {1, 4}}, {{1, 2}, {3, 4}}}, "t"));
  EXPECT_THROW(check_tiling(shape, {{{0, 0}, {4, 2}}, {{0, 2}, {1, 4}}}, "t"), DataError);  // a hole
  EXPECT_THROW(check_tiling(shape, {{{0, 0}, {4, 4}}, {{0, 2}, {4, 2}}}, "t"), DataError);  // hole and overlap
  EXPECT_THROW(check_tiling(shape, {{{0, 0}, {4, 6}}, {{0, 0}, {1, 1}}}, "t"), DataError);  // twice
  EXPECT_THROW(check_tiling(shape, {{{0, 0}, {5, 6}}}, "t"), DataError);                    // outside
  EXPECT_THROW(check_tiling(shape, {{{0}, {24}}}, "t"), DataError);                         // dimensions
  EXPECT_THROW(check_tiling({int64_t{1} << 40, int64_t{1} << 40}, {}, "t"), DataError);
  EXPECT_NO_THROW(check_tiling({}, {{{}, {}}}, "t"));
  EXPECT_THROW(check_tiling({}, {{{}, {}}, {{}, {}}}, "t"), DataError);
  EXPECT_NO_THROW(check_tiling({0, 3}, {{{0, 0}, {0, 3}}}, "t"));
}

TEST(BoxTest, CopiesTheSharedPartInThreeDimensions) {
  const Box from{{1, 0, 2}, {2, 3, 4}}, to{{2, 1, 0}, {2, 2, 5}};
  const auto part = intersection(from, to);
  ASSERT_TRUE(part);
  EXPECT_EQ(*part, (Box{{2, 1, 2}, {1, 2, 3}}));
  std::vector<std::byte> source(24), target(20, std::byte{0xFF});
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<std::byte>(i);
  copy_part(*part, BoxBytes<const std::byte>{from, source}, BoxBytes<std::byte>{to, target}, 1);
  for (int64_t y = 1; y < 3; ++y)
    for (int64_t x = 0; x < 5; ++x) {
      const auto value = target[static_cast<size_t>((y - 1) * 5 + x)];
      EXPECT_EQ(value, x < 2 ? std::byte{0xFF} : static_cast<std::byte>(12 + y * 4 + x - 2)) << y << ' ' << x;
    }
  EXPECT_FALSE(intersection(from, {{3, 0, 2}, {2, 3, 4}}));
}

}  // namespace
}  // namespace conclave::checkpoint
