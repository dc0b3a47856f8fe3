// SPDX-License-Identifier: Apache-2.0
// What `moe.dispatch.type: auto` means on given ranks: a cost model over rows copied and rows sent between hosts. It
// picks, and says why; Dispatcher::make builds.
#pragma once

#include <string>

#include "comm/group.h"
#include "moe/moe_config.h"

namespace conclave::moe {

struct DispatchNeeds {
  int64_t top_k = 1;
  bool bitwise = false;  // sums in token order only: reduction canonical
  DispatchPayload payload = DispatchPayload::kSame;
  bool parts_over_hosts = false;  // an expert's width is spread over several hosts
};

// What `shared` could have on a host. The ranks of all ep groups take from one /dev/shm.
struct HostMemory {
  int64_t ranks = 1;  // of the job, on this host
  int64_t bytes = 0;  // that are left, as the rank that sees least does; no limit for threads
};
// Of this rank's host. Collective over `world`, all ranks of the job.
HostMemory host_memory(const comm::Group& world);

struct DispatchChoice {
  DispatchType type = DispatchType::kLocal;
  std::string reason;  // one line; empty where there is nothing to say
};

// How ranks lie on hosts.
struct DispatchPlaces {
  int64_t ranks = 1, hosts = 1;
};

// Estimated cost of one token's way there or back, in rows copied within a host; a row that crosses between hosts costs
// kLinkCost of these. With n ranks on H hosts, L = n / H of them on each, and k experts for each token:
//
//                 rows between hosts          rows copied
//   shared        -                           k                 one write there, one read back; one host only
//   alltoall      k · (1 − 1/H)               3k                pack, transfer, regroup
//   allgather     n − L                       n + k             every rank gets every token
//   hierarchical  (H − 1)(1 − (1 − 1/H)^k)    3k + H            distinct hosts only
// With payload bf16 a row between hosts costs half of it, with fp8 a quarter.
inline constexpr double kLinkCost = 5;
double dispatch_cost(DispatchType type, const DispatchPlaces& places, const DispatchNeeds& needs);

// Resolves `auto`; other types are returned as they are. Collective over `ep`, whose ranks get the same result where
// their hosts have the same memory left.
DispatchChoice choose_dispatcher(DispatchType type, const DispatchNeeds& needs, const comm::Group& ep,
                                 const HostMemory& memory);

}  // namespace conclave::moe
