// SPDX-License-Identifier: Apache-2.0
// The nearest valid word for a mistyped one, and the names that other training stacks use for our keys.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::config {

// Damerau-Levenshtein distance (optimal string alignment): insertions, deletions, replacements and swapped neighbours.
// Gives limit + 1 for everything farther than `limit`.
int edit_distance(std::string_view a, std::string_view b, int limit);

// The candidate within distance 2 (1 for words of three letters and less), or the only one that `word` begins; else
// empty.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

// " (did you mean X?)" or nothing.
std::string did_you_mean(std::string_view word, std::span<const std::string> candidates);

// What `name` (a key of another stack, or one of its command-line flags) is called here: "moe.top_k". Empty when
// unknown.
std::string known_elsewhere_as(std::string_view name);
// All names that known_elsewhere_as knows, as (name, answer), for tests and documents.
std::vector<std::pair<std::string, std::string>> aliases();

}  // namespace conclave::config
