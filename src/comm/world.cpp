// SPDX-License-Identifier: Apache-2.0
#include "comm/world.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "comm/nccl_group.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

// How long a failing rank waits for others that fail as well: what all ranks read they read within this.
constexpr double kFailureWait = 1.5;

int environment_number(const char* name) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : 0;
}

bool is_launched() {
  constexpr std::array kSigns = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
  return std::any_of(kSigns.begin(), kSigns.end(), [](const char* name) { return std::getenv(name) != nullptr; });
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown host";
  return name.data();
}

cpu_set_t own_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) CPU_SET(0, &set);
  return set;
}

using SharedActivity = std::shared_ptr<Activity>;
struct Backend {
  const char* name;
  Group (*make)(const Group& host_group, const SharedActivity& activity);
};
constexpr std::array<Backend, 3> kBackends{{
    {"auto", [](const Group& host_group, const SharedActivity&) { return host_group; }},
    {"mpi", [](const Group& host_group, const SharedActivity&) { return host_group; }},
    {"nccl",
     [](const Group& host_group, const SharedActivity& activity) {
       return Group(make_observed(make_nccl_world(host_group), activity));
     }},
}};

void print_block(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace

World::World() {
  if (is_launched()) {
    session_ = std::make_unique<MpiSession>();
    exchange_ = std::make_unique<MpiFailureExchange>();
    group_ = Group(make_observed(make_mpi_world({}, progress_), activity_));
    const int promised = std::max(environment_number("OMPI_COMM_WORLD_SIZE"), environment_number("PMI_SIZE"));
    if (promised > 1 && group_.size() == 1)
      throw CommError(
          "the launcher started {} processes, but each sees itself alone: it belongs to another MPI than the one "
          "conclave is "
          "built with; use Open MPI's mpirun",
          promised);
  }
  hosts_ = group_.all_gather_text(host_name());
  if (size() > 1) roll_call_ = std::make_unique<RollCall>(group_, hosts_, activity_);
  const std::vector<cpu_set_t> cpus = group_.all_gather_value(own_cpus());
  int sharers = 0;
  local_size_ = 0;
  for (int r = 0; r < size(); ++r) {
    if (hosts_[r] != hosts_[rank()]) continue;
    ++local_size_;
    local_rank_ += r < rank() ? 1 : 0;
    sharers += CPU_EQUAL(&cpus[r], &cpus[rank()]) ? 1 : 0;
  }
  cores_ = std::max(CPU_COUNT(&cpus[rank()]) / sharers, 1);
}

Group World::group(const std::string& backend) const {
  std::string names;
  for (const Backend& known : kBackends) {
    if (known.name == backend) return known.make(group_, activity_);
    names += fmt::format("{}{}", names.empty() ? "" : ", ", known.name);
  }
  throw ConfigError("comm.backend: {}: there is no such backend; known are {}", backend, names);
}

int World::run(const std::function<int()>& body) {
  try {
    return body();
  } catch (...) {
    return end_failed(failure_of(std::current_exception()));
  }
}

int World::end_failed(const Failure& own) {
  std::vector<Failure> failures{own};
  if (exchange_) failures = exchange_->run(own, kFailureWait);
  const auto has_failed = [](const Failure& failure) { return failure.code != 0; };
  const auto first = std::find_if(failures.begin(), failures.end(), has_failed) - failures.begin();
  const int code = first_cause(failures).code;
  if (first == rank()) print_block(describe_failures(failures, hosts_));
  if (std::all_of(failures.begin(), failures.end(), has_failed)) return code;
  // The one that prints goes first: abort() ends the others before their text is out.
  if (first != rank()) std::this_thread::sleep_for(std::chrono::duration<double>(kFailureWait));
  group_.abort(code, own.message);
  return code;
}

int run_world(const std::function<int(World&)>& body) {
  std::unique_ptr<World> world;
  try {
    world = std::make_unique<World>();
  } catch (...) {
    const Failure failure = failure_of(std::current_exception());
    print_block(failure.message + "\n");
    return failure.code;
  }
  return world->run([&] { return body(*world); });
}

}  // namespace conclave::comm
