// SPDX-License-Identifier: Apache-2.0
// What a verification takes, estimated before it starts, so that a model too large for it is told so with advice.
#pragma once

#include <string>
#include <vector>

#include "verify/verify.h"

namespace conclave::verify {

struct Memory {
  int64_t total = 0, available = 0;  // bytes; 0 = unknown
};
// Of this host; available is what the kernel would give away now.
Memory host_memory();

struct HostShare {
  int64_t ranks = 4;       // of the largest layout, on this host
  int64_t references = 1;  // processes on this host, each of which keeps the reference
  Memory memory = {};
  int cores = 1;
};

struct Costs {
  int64_t bytes = 0;   // at the same time on this host
  double seconds = 0;  // very roughly
};
Costs costs_of(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
               const HostShare& host);

// Empty when it fits and takes minutes at most. Throws ConfigError when this host does not have the memory at all.
std::vector<std::string> cost_warnings(const Costs& costs, const HostShare& host);

}  // namespace conclave::verify
