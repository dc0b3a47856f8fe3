// SPDX-License-Identifier: Apache-2.0
// A job whose ranks end in the way named on the command line; the others wait in a collective for ever.
#include <string>

#include "comm/watchdog.h"
#include "comm/world.h"
#include "core/error.h"

namespace conclave {
namespace {

int wait_for_ever(const comm::Group& group) {
  for (;;) group.barrier();
}

int run(const std::string& scenario, const comm::World& world) {
  const comm::Group group = world.group();
  group.barrier();
  const int rank = group.rank();
  if (scenario == "none") return 0;
  if (scenario == "all") throw ConfigError("no such key: hiden_size");
  if (scenario == "one" && rank == 2) throw DataError("shard {} is cut short", rank);
  if (scenario == "some" && rank >= 2) throw IoError("the disk is full");
  if (scenario == "mixed" && rank == 1) throw CommError("rank 3 is gone");
  if (scenario == "mixed" && rank == 3) throw NumericError("loss is nan");
  if (scenario == "hang" && rank == 1) {
    comm::Watchdog watchdog(0.5, rank, nullptr);
    watchdog.beat(7, "reduce");
    return wait_for_ever(group);
  }
  if (scenario == "hang" && rank == 0) std::this_thread::sleep_for(std::chrono::hours(1));
  return wait_for_ever(group);
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  const std::string scenario = argc > 1 ? argv[1] : "none";
  return conclave::comm::run_world([&](conclave::comm::World& world) { return conclave::run(scenario, world); });
}
