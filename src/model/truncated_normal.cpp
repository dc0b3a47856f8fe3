// SPDX-License-Identifier: Apache-2.0
#include "model/truncated_normal.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <cmath>

#include "core/random.h"

namespace conclave::model {
namespace {

// Where in the whole tensor an element of what is held lies, row-major.
int64_t whole_element(const nn::LogicalTensor& part, int64_t i) {
  if (part.whole()) return i;
  const int64_t row = nn::element_count(part.shape) / part.shape[0];
  if (part.slice.dimension == 0) return part.slice.begin * row + i;
  return i / part.slice.count * row + part.slice.begin + i % part.slice.count;
}

template <typename T>
void truncate_part(std::span<T> held, const nn::LogicalTensor& part, double std, uint64_t seed) {
  at::parallel_for(0, std::ssize(held), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double z = static_cast<double>(held[i]) / std;
      for (int again = 1; std::abs(z) > 2; ++again) {
        const Random random(seed, Purpose::kInit, fmt::format("{} again {}", part.name, again));
        z = random.normal(static_cast<uint64_t>(whole_element(part, i)));
      }
      held[i] = static_cast<T>(z * (std / kTruncatedDeviation));
    }
  });
}

}  // namespace

void truncate(nn::Parameters& parameters, std::span<const nn::ParameterId> ids, uint64_t seed) {
  for (const nn::ParameterId id : ids) {
    const nn::Parameter& parameter = parameters[id];
    Tensor& flat = parameters.flat(parameter.expert);
    by_dtype(flat, [&](auto zero) {
      const auto all = elements<decltype(zero)>(flat);
      int64_t begin = parameter.offset;
      for (const auto& part : parameter.parts) {
        const int64_t count = nn::element_count(part.held());
        truncate_part(all.subspan(begin, count), part, parameter.init_std, seed);
        begin += count;
      }
    });
  }
}

}  // namespace conclave::model
