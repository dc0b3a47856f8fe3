// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_facts.h"

#include <ATen/Version.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <cstdlib>
#include <fstream>

#include "app/rank_resources.h"
#include "app/version.h"
#include "comm/mpi_library.h"

namespace conclave::app {
namespace {

int64_t limit_of(decltype(RLIMIT_NOFILE) resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<int64_t>(limit.rlim_cur);
}

// The number behind "NAME:" of /proc/meminfo, in bytes.
int64_t memory_figure(const std::string& name) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(name + ":")) return std::atoll(line.c_str() + name.size() + 1) * 1024;
  return 0;
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

std::string setting(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

}  // namespace

nlohmann::json to_json(const RankFacts& facts) {
  nlohmann::json json;
  RankFacts::each(facts, [&](const char* name, const auto& value) { json[name] = value; });
  return json;
}

RankFacts own_facts(const std::string& host, int cores) {
  struct statvfs shared {};
  const bool has_shared = statvfs("/dev/shm", &shared) == 0;
  return {.host = host,
          .program = kVersion,
          .mpi = comm::mpi_library(),
          .cpu = cpu_model() + ", " + at::get_cpu_capability(),
          .cores = process_cores(),
          .threads = rank_threads(cores),
          .memory = memory_figure("MemTotal"),
          .free = memory_figure("MemAvailable"),
          .shared = has_shared ? static_cast<int64_t>(shared.f_bavail * shared.f_frsize) : -1,
          .files = limit_of(RLIMIT_NOFILE),
          .locked = limit_of(RLIMIT_MEMLOCK),
          .core_dump = limit_of(RLIMIT_CORE),
          .yields = setting("OMPI_MCA_mpi_yield_when_idle"),
          .links = setting("OMPI_MCA_btl_tcp_links"),
          .keepalive = setting("OMPI_MCA_oob_tcp_keepalive_time")};
}

std::vector<RankFacts> gather_facts(const comm::Group& group, const RankFacts& own) {
  std::vector<RankFacts> all;
  for (const auto& text : group.all_gather_text(to_json(own).dump())) {
    const auto json = nlohmann::json::parse(text);
    RankFacts::each(all.emplace_back(), [&](const char* name, auto& value) { json.at(name).get_to(value); });
  }
  return all;
}

}  // namespace conclave::app
