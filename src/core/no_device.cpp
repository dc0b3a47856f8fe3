// SPDX-License-Identifier: Apache-2.0
#include "core/device.h"
#include "core/error.h"

namespace conclave::device {
namespace {

constexpr const char* kUnreachable = "no GPU is used in a build without CUDA";

}  // namespace

Availability available() {
  return {0, "this conclave was built without CUDA; build it with the cuda preset (./launch/build cuda)"};
}
void use(int) { check(false, kUnreachable); }
std::string describe(int) { throw BugError("internal error: {}", kUnreachable); }
Memory memory() { throw BugError("internal error: {}", kUnreachable); }

}  // namespace conclave::device
