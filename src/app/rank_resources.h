// SPDX-License-Identifier: Apache-2.0
// Threads and memory of this process, set once before anything is computed.
#pragma once

namespace conclave::app {

// Threads of this rank: OMP_NUM_THREADS when set, else its cores.
int rank_threads(int cores);
// Cores that this process may run on; a rank's share of them is comm::World::cores().
int process_cores();
// Activations are freed and made again every micro-batch: keeps their pages instead of returning and zeroing them each
// time.
void keep_memory();

}  // namespace conclave::app
