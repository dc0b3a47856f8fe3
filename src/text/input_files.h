// SPDX-License-Identifier: Apache-2.0
// Files as the text layer needs them: which files a list of arguments means, and whole small files in and out. It does
// not look inside them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace conclave::text {

// Files that `inputs` name, in the order of the inputs: a file; a directory = all files in it and below with a suffix
// of `suffixes`, sorted by path (symbolic links to directories are not followed); a glob (`*`, `?`, `[`) = its matches,
// sorted. Throws DataError when an input gives no file, when a named file has none of the suffixes or when a file comes
// twice, and IoError when a directory cannot be read.
std::vector<std::string> list_input_files(const std::vector<std::string>& inputs,
                                          const std::vector<std::string_view>& suffixes);

// Throws IoError when it cannot be read and DataError when it is larger than `largest` bytes.
std::string read_whole_file(const std::string& path, int64_t largest);

// Writes PATH.tmp, syncs it and renames it over `path`, then syncs the directory. Throws IoError; `path` is then as
// before.
void write_whole_file(const std::string& path, std::string_view content);

}  // namespace conclave::text
