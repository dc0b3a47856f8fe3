// SPDX-License-Identifier: Apache-2.0
#include "model/partial_gradients.h"

#include "parallel/ordered_sum.h"

namespace conclave::model {

PartialGradients::PartialGradients(const nn::Parameters& parameters, const parallel::Mesh& mesh) : tp_(mesh.tp()) {
  for (const auto& parameter : parameters.all())
    if (parameter.partial) ranges_.push_back({parameter.offset, parameter.count});
}

void PartialGradients::sum(Tensor& dense) const {
  if (tp_.size() == 1) return;
  by_dtype(dense, [&](auto zero) {
    using T = decltype(zero);
    const auto all = elements<T>(dense);
    std::vector<T> packed;  // one exchange for all
    for (const auto& range : ranges_) {
      const auto part = all.subspan(range.begin, range.count);
      packed.insert(packed.end(), part.begin(), part.end());
    }
    parallel::ordered_sum(tp_, std::span<T>(packed));
    auto next = packed.begin();
    for (const auto& range : ranges_) {
      std::copy_n(next, range.count, all.begin() + range.begin);
      next += range.count;
    }
  });
}

}  // namespace conclave::model
