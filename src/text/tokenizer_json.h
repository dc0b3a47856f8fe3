// SPDX-License-Identifier: Apache-2.0
// Hugging Face's tokenizer.json for byte-level BPE, in and out. What we cannot do exactly is refused by name, never
// approximated. Of the post-processor only its kind is checked: we add no tokens around a text.
#pragma once

#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace conclave::text {

// Throws DataError naming `where`, the place in the file and the reason.
TokenizerParts parse_tokenizer_json(std::string_view json, const std::string& where);

std::string write_tokenizer_json(const TokenizerParts& parts);

}  // namespace conclave::text
