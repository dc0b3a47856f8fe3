// SPDX-License-Identifier: Apache-2.0
// Strict UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF), only what tokenizers need of it.
// It knows nothing of character properties or normal forms.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace conclave::text {

// Bytes of the valid character that starts `text`, or 0 when none does.
size_t utf8_character_size(std::string_view text);

// Bytes of the longest valid prefix of `text`.
size_t utf8_valid_prefix(std::string_view text);

// Takes the first character off `text`, which must be valid and not empty.
char32_t utf8_take(std::string_view& text);

void utf8_append(char32_t character, std::string& out);

}  // namespace conclave::text
