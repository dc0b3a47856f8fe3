// SPDX-License-Identifier: Apache-2.0
// How many threads did the work: observed, not asked of a variable.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cfenv>
#include <functional>

namespace conclave::test {

// How many of the pool's threads did arithmetic in `work`: each thread has its own "inexact" flag, which rounding
// raises and waiting does not.
inline int threads_that_rounded(int threads, const std::function<void()>& work) {
  at::parallel_for(0, threads, 1, [](int64_t, int64_t) { std::feclearexcept(FE_ALL_EXCEPT); });
  work();
  std::atomic<int> rounded{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { rounded += std::fetestexcept(FE_INEXACT) != 0 ? 1 : 0; });
  return rounded.load();
}

}  // namespace conclave::test
