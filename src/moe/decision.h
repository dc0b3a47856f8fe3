// SPDX-License-Identifier: Apache-2.0
// Everything later stages and reports read of one layer's routing in one micro-batch.
#pragma once

#include "moe/routing.h"
#include "moe/statistics.h"

namespace conclave::moe {

struct Decision {
  Choice choice;                // of the whole micro-batch
  Routing routing;              // of this rank's tokens
  int64_t first_token = 0;      // of those in the micro-batch
  std::vector<int32_t> lost_C;  // picks of this rank's tokens that capacity refused, where a fallback takes them
  RouterStatistics statistics;  // of the whole micro-batch
};

}  // namespace conclave::moe
