// SPDX-License-Identifier: Apache-2.0
// What each rank finds on its host: cores, memory, limits, versions, settings of Open MPI. Facts only; what is wrong
// with them says doctor_findings.h.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/group.h"

namespace conclave::app {

struct RankFacts {
  std::string host;
  std::string program;    // kVersion
  std::string mpi;        // "Open MPI v4.1.4"
  std::string cpu;        // model, and the instructions that LibTorch uses there
  int64_t cores = 0;      // that this process may run on
  int64_t threads = 0;    // that it will compute with
  int64_t memory = 0;     // bytes of the host
  int64_t free = 0;       // of them available
  int64_t shared = 0;     // bytes free in /dev/shm; -1: there is none
  int64_t files = 0;      // open files, soft limit; -1: no limit, here and below
  int64_t locked = 0;     // bytes
  int64_t core_dump = 0;  // bytes
  std::string yields;     // OMPI_MCA_mpi_yield_when_idle as set, empty: not
  std::string links;      // OMPI_MCA_btl_tcp_links
  std::string keepalive;  // OMPI_MCA_oob_tcp_keepalive_time

  template <typename Self>
  static void each(Self& self, auto&& see) {
    see("host", self.host);
    see("program", self.program);
    see("mpi", self.mpi);
    see("cpu", self.cpu);
    see("cores", self.cores);
    see("threads", self.threads);
    see("memory_bytes", self.memory);
    see("free_bytes", self.free);
    see("shm_free_bytes", self.shared);
    see("open_files", self.files);
    see("locked_bytes", self.locked);
    see("core_dump_bytes", self.core_dump);
    see("mpi_yield_when_idle", self.yields);
    see("btl_tcp_links", self.links);
    see("oob_tcp_keepalive_time", self.keepalive);
  }
};

nlohmann::json to_json(const RankFacts& facts);

// This process's. `cores` is the rank's share of its host's.
RankFacts own_facts(const std::string& host, int cores);

// Every rank's, by rank, on every rank. Collective.
std::vector<RankFacts> gather_facts(const comm::Group& group, const RankFacts& own);

}  // namespace conclave::app
