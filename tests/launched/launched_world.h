// SPDX-License-Identifier: Apache-2.0
// The world that main joined, for tests: GoogleTest makes its cases itself and cannot be handed one.
#pragma once

#include "comm/world.h"

namespace conclave::test {

// Sets the world when `joined` is given; returns the one that is set.
inline comm::World& launched_world(comm::World* joined = nullptr) {
  static comm::World* world = nullptr;
  if (joined) world = joined;
  return *world;
}

}  // namespace conclave::test
