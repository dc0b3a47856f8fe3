// SPDX-License-Identifier: Apache-2.0
#include "text/byte_level.h"

#include <gtest/gtest.h>

#include <set>

#include "text/utf8.h"

namespace conclave::text {
namespace {

std::string all_bytes() {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  return bytes;
}

TEST(ByteLevelTest, WritesBytesAsGpt2Does) {
  EXPECT_EQ(bytes_to_characters(" a\n\t"), "ĠaĊĉ");
  EXPECT_EQ(bytes_to_characters(std::string(1, '\0')), "Ā");
  EXPECT_EQ(bytes_to_characters("\x7f\x80\xa0\xad"), "ġĢłŃ");
  EXPECT_EQ(bytes_to_characters("\xa1\xac\xae\xff"), "¡¬®ÿ");
  EXPECT_EQ(bytes_to_characters("é"), "Ã©");
}

TEST(ByteLevelTest, GivesEveryByteACharacterOfItsOwnAndBack) {
  std::set<char32_t> characters;
  for (int byte = 0; byte < 256; ++byte) characters.insert(byte_to_character(static_cast<unsigned char>(byte)));
  EXPECT_EQ(characters.size(), 256u);
  EXPECT_EQ(characters_to_bytes(bytes_to_characters(all_bytes())), all_bytes());
}

TEST(ByteLevelTest, RefusesCharactersThatStandForNoByte) {
  EXPECT_EQ(characters_to_bytes("a b"), std::nullopt);     // a plain space is written as U+0120
  EXPECT_EQ(characters_to_bytes("\u0144"), std::nullopt);  // one past the last substitute
  EXPECT_EQ(characters_to_bytes("漢"), std::nullopt);
  EXPECT_EQ(characters_to_bytes("\xff"), std::nullopt);  // not UTF-8
}

TEST(Utf8Test, AcceptsExactlyTheCharactersOfUnicode) {
  for (const char32_t character : {0x0, 0x7f, 0x80, 0x7ff, 0x800, 0xd7ff, 0xe000, 0xffff, 0x10000, 0x10ffff}) {
    std::string text;
    utf8_append(character, text);
    EXPECT_EQ(utf8_character_size(text), text.size()) << static_cast<uint32_t>(character);
    std::string_view rest = text;
    EXPECT_TRUE(utf8_take(rest) == character) << static_cast<uint32_t>(character);
    EXPECT_TRUE(rest.empty());
    EXPECT_EQ(utf8_character_size(std::string_view(text).substr(0, text.size() - 1)), 0u)
        << "cut short: " << static_cast<uint32_t>(character);
  }
}

TEST(Utf8Test, RefusesOverlongFormsSurrogatesAndStrayBytes) {
  for (const std::string_view text :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xed\xa0\x80", "\xed\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3(", "\xe2\x82("}) {
    EXPECT_EQ(utf8_character_size(text), 0u) << bytes_to_characters(text);
  }
}

TEST(Utf8Test, FindsTheValidPrefixWhereverTheBreakIs) {
  for (size_t before = 0; before < 20; ++before) {
    const std::string text = std::string(before, 'x') + "\xff" + std::string(20, 'y');
    EXPECT_EQ(utf8_valid_prefix(text), before);
  }
  EXPECT_EQ(utf8_valid_prefix("plain ascii, long enough"), 24u);
  EXPECT_EQ(utf8_valid_prefix("ab漢\xe6\xbc"), 5u);
}

}  // namespace
}  // namespace conclave::text
