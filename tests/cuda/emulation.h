// SPDX-License-Identifier: Apache-2.0
// CUDA's execution model on a CPU, for the device code of src/kernels/cuda: the blocks of a grid run one after another,
// the threads of a block as fibers that change hands only at barriers and warp operations. Slow and deterministic; it
// knows nothing of speed, memory coalescing or the GPU's rounding.
//
// What it finds that a GPU may hide: a barrier or warp operation that not all threads reach, or reach at different
// lines; shared memory read before it was written (filled with 0xff) or beyond what was asked for; and, because tests
// run every kernel in several orders of blocks and threads and compare, missing barriers.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
// One operating system thread emulates one device.
inline thread_local EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace conclave::emulation {

// The kernel did what CUDA leaves undefined.
class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Order { kForward, kBackward, kShuffled };
inline constexpr std::array<Order, 3> kOrders = {Order::kForward, Order::kBackward, Order::kShuffled};

// The order of blocks, and of threads between two barriers, of the launches that follow on this thread.
void set_order(Order order);

struct Grid {
  const char* name;
  int64_t blocks;
  int threads;
  size_t shared_bytes;
};

// Runs `thread` once for every thread of the grid. Throws EmulationError, and what `thread` throws.
void run(const Grid& grid, const std::function<void()>& thread);

// Launches since the program began, on this thread.
int64_t launches();

// The running block's shared memory.
unsigned char* shared_memory();

using Site = std::source_location;
void barrier(const Site& site);
// Gives the warp `value`; returns, once every lane has come, what `lane` gave.
uint64_t exchange(uint64_t value, unsigned lane, const Site& site);
// The same for a whole warp: bit i is lane i's predicate.
unsigned ballot(bool predicate, const Site& site);
// For each lane: bit i is whether lane i gave the same value.
unsigned match(uint64_t value, const Site& site);
unsigned lane();
void check_mask(unsigned mask, const Site& site);

template <typename T>
T exchange_as(T value, unsigned from, const Site& site) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, from, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace conclave::emulation

using EmulatedSite = conclave::emulation::Site;

inline void __syncthreads(const EmulatedSite& site = EmulatedSite::current()) { conclave::emulation::barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  conclave::emulation::ballot(true, site);
}
inline void __threadfence() {}

inline unsigned __ballot_sync(unsigned mask, bool predicate, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  return conclave::emulation::ballot(predicate, site);
}
inline unsigned __match_any_sync(unsigned mask, int value, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  return conclave::emulation::match(static_cast<uint32_t>(value), site);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  return conclave::emulation::exchange_as(value, static_cast<unsigned>(from) & 31u, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  return conclave::emulation::exchange_as(value, conclave::emulation::lane() ^ static_cast<unsigned>(with), site);
}
// As on the device, a lane whose partner does not exist keeps its own value.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  const unsigned own = conclave::emulation::lane();
  return conclave::emulation::exchange_as(value, own + by < 32 ? own + by : own, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, const EmulatedSite& site = EmulatedSite::current()) {
  conclave::emulation::check_mask(mask, site);
  const unsigned own = conclave::emulation::lane();
  return conclave::emulation::exchange_as(value, own >= by ? own - by : own, site);
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
// Whole numbers only: sums of floating numbers in the order threads arrive would not repeat, so none compiles.
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address = before + value;
  return before;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
