// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatcher.h"

#include <ATen/ops/empty_like.h>

#include "core/error.h"
#include "moe/dispatchers/row_carrier.h"

namespace conclave::moe {

// One for each file in dispatchers/.
std::unique_ptr<Dispatcher> local_dispatcher();
std::unique_ptr<Dispatcher> all_to_all_dispatcher(const RowCarrier& rows);
std::unique_ptr<Dispatcher> shared_dispatcher(const comm::Group& ep, const std::vector<int>& hosts);
std::unique_ptr<Dispatcher> all_gather_dispatcher(const RowCarrier& rows);
std::unique_ptr<Dispatcher> hierarchical_dispatcher(const RowCarrier& rows, const std::vector<int>& hosts);

std::unique_ptr<Dispatcher> Dispatcher::make(const DispatchConfig& config, const comm::Group& ep) {
  return make_on(ep.hosts(), config, ep);
}

std::unique_ptr<Dispatcher> Dispatcher::make_on(const std::vector<int>& hosts, const DispatchConfig& config,
                                                const comm::Group& ep) {
  if (config.type == DispatchType::kLocal && ep.size() > 1)
    throw ConfigError("moe.dispatch.type: local needs parallel.ep = 1, but ep is {}; use auto or alltoall", ep.size());
  const auto rows = [&] { return RowCarrier(ep, hosts, config.payload); };
  switch (config.type) {
    case DispatchType::kAuto:
      return ep.size() == 1 ? local_dispatcher() : all_to_all_dispatcher(rows());
    case DispatchType::kLocal:
      return local_dispatcher();
    case DispatchType::kAllToAll:
      return all_to_all_dispatcher(rows());
    case DispatchType::kShared:
      return shared_dispatcher(ep, hosts);
    case DispatchType::kHierarchical:
      return hierarchical_dispatcher(rows(), hosts);
    case DispatchType::kAllGather:
      return all_gather_dispatcher(rows());
  }
  throw BugError("internal error: unknown dispatcher");
}

Tensor DispatchPlan::empty_results(const Tensor& rows_RD) const {
  return make_results ? make_results(rows_RD) : at::empty_like(rows_RD);
}

void append_segments(std::span<const int32_t> counts_e, int source, int64_t first, DispatchPlan& plan) {
  constexpr int64_t multiple = Dispatcher::kRowMultiple;
  for (size_t e = 0; e < counts_e.size(); ++e) {
    const int64_t count = counts_e[e];
    if (count == 0) continue;
    const int64_t padded = (count + multiple - 1) / multiple * multiple;
    plan.segments.push_back({static_cast<int64_t>(e), source, plan.rows_R, padded});
    for (int64_t i = 0; i < count; ++i) plan.place_of_N.push_back(static_cast<int32_t>(plan.rows_R + i));
    for (int64_t i = 0; i < padded; ++i) plan.source_of_R.push_back(i < count ? static_cast<int32_t>(first + i) : -1);
    plan.rows_R += padded;
    first += count;
  }
}

}  // namespace conclave::moe
