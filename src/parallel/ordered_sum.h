// SPDX-License-Identifier: Apache-2.0
// A sum over ranks whose bits are the same on every rank and in every run: parts are added in the order of the ranks.
// For what tensor-parallel ranks must agree on; large gradients have tree_reduce.h.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "comm/group.h"

namespace conclave::parallel {

// In place, element by element. Collective; T is float or double. Every rank receives everything, so keep it short.
template <typename T>
void ordered_sum(const comm::Group& group, std::span<T> data) {
  if (group.size() == 1) return;
  std::vector<T> all(data.size() * group.size());
  group.all_gather(std::span<const T>(data), std::span<T>(all));
  std::copy_n(all.begin(), data.size(), data.begin());
  for (size_t part = data.size(); part < all.size(); part += data.size())
    for (size_t i = 0; i < data.size(); ++i) data[i] += all[part + i];
}

}  // namespace conclave::parallel
