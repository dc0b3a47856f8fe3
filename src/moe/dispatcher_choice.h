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
};

struct DispatchChoice {
  DispatchType type = DispatchType::kLocal;
  std::string reason;  // one line; empty where nothing was chosen
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
inline constexpr double kLinkCost = 5;
double dispatch_cost(DispatchType type, const DispatchPlaces& places, int64_t top_k);

// Resolves `auto`; other types are returned as they are. Collective over `ep` (same result on all its ranks).
DispatchChoice choose_dispatcher(DispatchType type, const DispatchNeeds& needs, const comm::Group& ep);

}  // namespace conclave::moe
