// SPDX-License-Identifier: Apache-2.0
// JSON from files that may be damaged or hostile: bounded depth, no key twice, every field fetched with its type and
// place. Writing is nlohmann's dump().
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace conclave::checkpoint {

using Json = nlohmann::json;

// Throws DataError, naming `where`, on anything that is not one JSON value: bad syntax or UTF-8, a key given twice,
// more than 32 levels, a NUL byte, an integer beyond 64 bits.
Json parse_json(std::string_view text, const std::string& where);

// An object's required fields. Each throws DataError naming `where` and the key.
const Json& field(const Json& object, const char* key, const std::string& where);
std::string text_field(const Json& object, const char* key, const std::string& where);
// 0 ... 2^63 - 1.
int64_t count_field(const Json& object, const char* key, const std::string& where);
std::vector<int64_t> counts_field(const Json& object, const char* key, const std::string& where);

}  // namespace conclave::checkpoint
