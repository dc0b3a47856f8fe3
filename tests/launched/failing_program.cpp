// SPDX-License-Identifier: Apache-2.0
// A job whose ranks end in the way named on the command line; the others wait in a collective for ever.
#include <csignal>
#include <filesystem>
#include <string>

#include "comm/watchdog.h"
#include "comm/world.h"
#include "core/error.h"

namespace conclave {
namespace {

int wait_for_ever(const comm::Group& group) {
  for (;;) group.barrier();
}

// Everybody waits for `stopped`, which SIGSTOP keeps from saying anything.
int wait_for_stopped(const comm::World& world, int stopped) {
  const comm::Group group = world.group();
  comm::Watchdog watchdog(0.5, world.rank(), world.activity(), world.roll_call());
  watchdog.beat(7, "reduce");
  if (world.rank() == stopped) std::raise(SIGSTOP);
  return wait_for_ever(group);
}

// Two groups, each of which wants six tenths of the host's shared memory; the first may have it.
int share_too_much(const comm::Group& group) {
  const auto space = std::filesystem::space("/dev/shm");
  const comm::Group half = group.split(group.rank() % 2, group.rank());
  group.barrier();  // so that both look before either takes
  const auto memory = half.share(static_cast<int64_t>(space.capacity) * 6 / 10 / half.size());
  group.barrier();
  return 0;
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
  if (scenario == "share") return share_too_much(group);
  if (scenario == "stopped") return wait_for_stopped(world, 2);
  if (scenario == "stopped-first") return wait_for_stopped(world, 0);
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
