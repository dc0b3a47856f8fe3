// SPDX-License-Identifier: Apache-2.0
// The program's version; the build writes version.cpp from CMake's project version and the commit.
#pragma once

namespace conclave::app {

extern const char* const kVersion;  // "conclave 0.1.0 (abc1234, LibTorch 2.11.0)"

}  // namespace conclave::app
