// SPDX-License-Identifier: Apache-2.0
#include "text/byte_level.h"

#include <array>

#include "text/utf8.h"

namespace conclave::text {
namespace {

constexpr char32_t kFirstSubstitute = 0x100;
constexpr int kSubstitutes = 68;

constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Maps {
  std::array<char32_t, 256> character{};
  std::array<int, kFirstSubstitute + kSubstitutes> byte{};  // -1 = stands for no byte
};

constexpr Maps make_maps() {
  Maps maps;
  for (int& byte : maps.byte) byte = -1;
  char32_t substitute = kFirstSubstitute;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t character = is_printable(byte) ? static_cast<char32_t>(byte) : substitute++;
    maps.character[byte] = character;
    maps.byte[character] = byte;
  }
  return maps;
}

constexpr Maps kMaps = make_maps();

}  // namespace

char32_t byte_to_character(unsigned char byte) { return kMaps.character[byte]; }

std::string bytes_to_characters(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) utf8_append(byte_to_character(static_cast<unsigned char>(byte)), out);
  return out;
}

std::optional<std::string> characters_to_bytes(std::string_view characters) {
  if (utf8_valid_prefix(characters) != characters.size()) return std::nullopt;
  std::string out;
  while (!characters.empty()) {
    const char32_t character = utf8_take(characters);
    if (character >= kMaps.byte.size() || kMaps.byte[character] < 0) return std::nullopt;
    out += static_cast<char>(kMaps.byte[character]);
  }
  return out;
}

}  // namespace conclave::text
