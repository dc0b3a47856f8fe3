// SPDX-License-Identifier: Apache-2.0
// How one document is laid over another: the rule of `include:`.
#pragma once

#include "config/node.h"

namespace conclave::config {

// Keys of `over` win; sections merge key by key, everything else is replaced as a whole.
void merge(Node& base, Node over);

}  // namespace conclave::config
