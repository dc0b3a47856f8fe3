// SPDX-License-Identifier: Apache-2.0
// Dispatch and combine of every dispatcher, timed beside the usual way (naive_exchange.h) in one run: figure F4 of
// docs/performance.md. Experts do nothing here.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "comm/world.h"
#include "moe/moe_config.h"

namespace conclave::app {

struct DispatchBenchOptions {
  std::vector<int64_t> tokens{512, 4096}, widths{256, 512}, top_k{2, 8};
  int64_t experts = 64;
  int64_t repeats = 9;
  double skew = 0;   // 0 = all experts alike; else the spread of their popularity (standard deviation of logits)
  std::string only;  // one dispatcher, by name; empty = all
  moe::DispatchPayload payload = moe::DispatchPayload::kSame;  // of rows between hosts
};

struct DispatchCase {
  int64_t tokens, width, top_k;
};

// Seconds of each repetition, of the slowest rank: dispatch with its plan, and combine.
struct DispatchTimes {
  std::vector<double> dispatch, combine;
};

struct DispatchBench {
  struct Result {
    DispatchCase shape;
    DispatchTimes naive;
    std::map<std::string, DispatchTimes> dispatchers;  // by name
  };
  std::vector<Result> results;
  std::vector<std::string> left_out;  // why, a line each
  int ranks = 1, threads = 1;
  double load = 0;  // of the machine when it began
};

// Collective; every process is a rank of one ep group. Compares results before it times: throws BugError where a
// dispatcher does not give what the usual way gives.
DispatchBench bench_dispatch(comm::World& world, const DispatchBenchOptions& options);

// For those who count bytes on links: `exchanges` times dispatch and combine of every shape by `options.only`, untimed
// and alone. Also "per-rank", which sends a token to each rank once. Collective.
void run_exchanges(comm::World& world, const DispatchBenchOptions& options, int64_t exchanges);

// The result as people read it, and as programs do.
std::string dispatch_report(const DispatchBench& bench);
std::string dispatch_json(const DispatchBench& bench);

}  // namespace conclave::app
