// SPDX-License-Identifier: Apache-2.0
// The byte-to-character map of GPT-2 (Radford et al. 2019): every byte is written as one printable character, so that a
// vocabulary of byte strings can live in a JSON file. It does not split text; see pre_tokenizer.h.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace conclave::text {

// 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for themselves; the other 68 bytes, in ascending order, are U+0100 + n.
char32_t byte_to_character(unsigned char byte);

// Any bytes, written in these characters as UTF-8.
std::string bytes_to_characters(std::string_view bytes);

// The inverse; empty when `characters` is not UTF-8 or holds a character that stands for no byte.
std::optional<std::string> characters_to_bytes(std::string_view characters);

}  // namespace conclave::text
