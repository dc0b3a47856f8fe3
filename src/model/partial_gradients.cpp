// SPDX-License-Identifier: Apache-2.0
#include "model/partial_gradients.h"

#include <algorithm>

#include "parallel/ordered_sum.h"

namespace conclave::model {

PartialGradients::PartialGradients(const nn::Parameters& parameters, const parallel::Mesh& mesh) : tp_(mesh.tp()) {
  for (const auto& parameter : parameters.all())
    if (parameter.partial) ranges_.push_back({parameter.offset, parameter.offset + parameter.count});
}

void PartialGradients::sum(Tensor& dense, int64_t begin, int64_t end) const {
  if (tp_.size() == 1) return;
  std::vector<Range> inside;
  for (const auto& range : ranges_)
    if (range.begin < end && range.end > begin)
      inside.push_back({std::max(range.begin, begin), std::min(range.end, end)});
  if (inside.empty()) return;
  by_dtype(dense, [&](auto zero) {
    using T = decltype(zero);
    const auto all = elements<T>(dense);
    std::vector<T> packed;  // one exchange for all
    for (const auto& range : inside) {
      const auto part = all.subspan(range.begin, range.end - range.begin);
      packed.insert(packed.end(), part.begin(), part.end());
    }
    parallel::ordered_sum(tp_, std::span<T>(packed));
    auto next = packed.begin();
    for (const auto& range : inside) {
      std::copy_n(next, range.end - range.begin, all.begin() + range.begin);
      next += range.end - range.begin;
    }
  });
}

}  // namespace conclave::model
