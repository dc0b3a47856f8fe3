// SPDX-License-Identifier: Apache-2.0
// Pages of docs/ that hold what the program itself prints.
#pragma once

#include <string>
#include <string_view>

namespace conclave::app {

// Replaces what stands between the marker lines of `command` ("conclave config docs") in `file`. Throws IoError, and
// UsageError for a page without the markers.
void renew_page(const std::string& file, std::string_view command, const std::string& generated);

}  // namespace conclave::app
