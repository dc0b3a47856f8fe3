// SPDX-License-Identifier: Apache-2.0
#include "app/rank_resources.h"

#include <malloc.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>

namespace conclave::app {

int rank_threads(int cores) {
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  const int number = wanted ? std::atoi(wanted) : 0;
  return number > 0 ? number : std::max(1, cores);
}

int process_cores() {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
}

void keep_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
}

}  // namespace conclave::app
