// SPDX-License-Identifier: Apache-2.0
// YAML text to a Node tree and back. The reader takes the part of YAML that configurations need and puts limits in
// front of the parser: 1 MiB, 32 levels, UTF-8, one document, no anchors, aliases or tags, so that a hostile file fails
// at once.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "config/node.h"

namespace conclave::config {

inline constexpr size_t kMaxBytes = 1 << 20;
inline constexpr int kMaxDepth = 32;

// Reads the whole of `file`; `shown` is its name in messages. Throws ConfigError when it cannot be read or is too
// large.
std::shared_ptr<const Source> read_source(const std::filesystem::path& file, const std::string& shown);

// The tree of source.text from byte `start` on. Duplicate keys become problems, what cannot be parsed throws
// ConfigError.
Node parse_yaml(const std::shared_ptr<const Source>& source, Problems& problems, size_t start = 0);

// Position of the first byte that is not UTF-8 or is a control character other than tab and line ends; npos when clean.
size_t find_bad_byte(std::string_view text);

// Block style, two spaces, short lists of scalars in one line. With `origins`, every scalar ends with "# where".
std::string write_yaml(const Node& root, bool origins = false);
// A scalar as write_yaml writes it: quoted only when it would be read as something else.
std::string write_scalar(const Node& node);

}  // namespace conclave::config
