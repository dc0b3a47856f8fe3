// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace conclave::emulation {
namespace {

constexpr size_t kStack = 128 * 1024;
constexpr unsigned kWarp = 32;
constexpr size_t kGuard = 64;
constexpr unsigned char kUnwritten = 0xff;  // NaN in every floating type, -1 in whole numbers

enum class State { kReady, kAtBarrier, kAtWarp, kEnded };

struct Fiber {
  ucontext_t first;
  jmp_buf saved;
  bool started = false;
  State state = State::kReady;
  Site site;
  std::unique_ptr<char[]> stack{new char[kStack]};
};

// What the lanes of a warp gave at their last and at their present operation: a lane may come to the next one before
// all have read the last one's values.
struct Warp {
  std::array<std::array<uint64_t, kWarp>, 2> values{};
  unsigned arrived = 0;
  int turn = 0;
};

struct Device {
  Order order = Order::kForward;
  int64_t launches = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  const Grid* grid = nullptr;
  const std::function<void()>* thread = nullptr;
  Fiber* running = nullptr;
  unsigned number = 0, at_barrier = 0;
  std::exception_ptr failure;
  jmp_buf scheduler;
};

thread_local Device device;

std::string place(const Site& site) {
  const std::string file = site.file_name();
  return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line());
}

std::string describe(unsigned number) {
  const Fiber& fiber = *device.fibers[number];
  const std::string who = "thread " + std::to_string(number);
  if (fiber.state == State::kEnded) return who + " has ended";
  return who + " waits at " + place(fiber.site);
}

[[noreturn]] void fail(const std::string& why) {
  throw EmulationError(std::string("kernel ") + device.grid->name + ", block " + std::to_string(blockIdx.x) + ": " +
                       why);
}

void yield() {
  if (_setjmp(device.running->saved) == 0) _longjmp(device.scheduler, 1);
}

void fiber_main() {
  try {
    (*device.thread)();
  } catch (...) {
    device.failure = std::current_exception();
  }
  device.running->state = State::kEnded;
  _longjmp(device.scheduler, 1);
}

[[noreturn]] void enter_running() {
  Fiber& fiber = *device.running;
  if (fiber.started) _longjmp(fiber.saved, 1);
  fiber.started = true;
  setcontext(&fiber.first);
  std::abort();  // setcontext does not return
}

// Returns when the thread waits or has ended.
void resume(unsigned number) {
  device.running = device.fibers[number].get();
  device.number = number;
  threadIdx = {number, 0, 0};
  if (_setjmp(device.scheduler) == 0) enter_running();
}

void prepare(Fiber& fiber) {
  fiber.started = false;
  fiber.state = State::kReady;
  getcontext(&fiber.first);
  fiber.first.uc_stack.ss_sp = fiber.stack.get();
  fiber.first.uc_stack.ss_size = kStack;
  fiber.first.uc_link = nullptr;
  makecontext(&fiber.first, fiber_main, 0);
}

std::vector<unsigned> numbers(int64_t count, uint64_t seed) {
  std::vector<unsigned> list(static_cast<size_t>(count));
  std::iota(list.begin(), list.end(), 0u);
  if (device.order == Order::kBackward) std::reverse(list.begin(), list.end());
  if (device.order == Order::kShuffled) std::shuffle(list.begin(), list.end(), std::mt19937_64(seed));
  return list;
}

// Some threads wait for others that never come.
[[noreturn]] void report_deadlock(const std::vector<unsigned>& order) {
  const auto waits = [](unsigned i) { return device.fibers[i]->state != State::kEnded; };
  const unsigned waiting = *std::find_if(order.begin(), order.end(), waits);
  const auto elsewhere = [&](unsigned i) {
    return device.fibers[i]->state != device.fibers[waiting]->state ||
           device.fibers[i]->site.line() != device.fibers[waiting]->site.line();
  };
  const auto other = std::find_if(order.begin(), order.end(), elsewhere);
  fail("deadlock: " + describe(waiting) + (other == order.end() ? "" : ", " + describe(*other)));
}

void run_block(const std::vector<unsigned>& order) {
  const auto threads = static_cast<unsigned>(device.grid->threads);
  for (unsigned i = 0; i < threads; ++i) prepare(*device.fibers[i]);
  device.warps.assign(threads / kWarp, Warp{});
  device.shared.assign(device.grid->shared_bytes + kGuard, kUnwritten);
  device.at_barrier = 0;
  for (unsigned ended = 0; ended < threads;) {
    bool moved = false;
    for (const unsigned i : order) {
      if (device.fibers[i]->state != State::kReady) continue;
      resume(i);
      if (device.failure) std::rethrow_exception(std::exchange(device.failure, nullptr));
      ended += device.fibers[i]->state == State::kEnded ? 1 : 0;
      moved = true;
    }
    if (!moved) report_deadlock(order);
  }
  const auto guard = device.shared.end() - static_cast<std::ptrdiff_t>(kGuard);
  if (std::any_of(guard, device.shared.end(), [](unsigned char c) { return c != kUnwritten; })) {
    fail("wrote beyond its " + std::to_string(device.grid->shared_bytes) + " bytes of shared memory");
  }
}

Warp& warp() { return device.warps[device.number / kWarp]; }

// Waits for the other lanes, which must come to the same line; returns which of the two sets of values is complete.
int meet(uint64_t value, const Site& site) {
  Warp& own = warp();
  const int turn = own.turn;
  own.values[turn][lane()] = value;
  device.running->site = site;
  const unsigned first = device.number / kWarp * kWarp;
  for (unsigned i = first; i < first + kWarp; ++i) {
    const Fiber& other = *device.fibers[i];
    if (other.state == State::kAtWarp && (other.site.line() != site.line() || other.site.column() != site.column())) {
      fail("lanes diverge: " + describe(i) + ", thread " + std::to_string(device.number) + " came to " + place(site));
    }
  }
  if (++own.arrived < kWarp) {
    device.running->state = State::kAtWarp;
    yield();
    return turn;
  }
  own.arrived = 0;
  own.turn = 1 - turn;
  for (unsigned i = first; i < first + kWarp; ++i) device.fibers[i]->state = State::kReady;
  return turn;
}

}  // namespace

void set_order(Order order) { device.order = order; }

int64_t launches() { return device.launches; }

void run(const Grid& grid, const std::function<void()>& thread) {
  device.grid = &grid;
  device.thread = &thread;
  ++device.launches;
  blockIdx = {};
  if (grid.threads < 1 || grid.threads > 1024 || grid.threads % static_cast<int>(kWarp) != 0) {
    fail(std::to_string(grid.threads) + " threads a block: whole warps, at most 1024, are expected");
  }
  if (grid.blocks < 1 || grid.blocks > 0x7fffffff) fail(std::to_string(grid.blocks) + " blocks");
  if (grid.shared_bytes > 48 * 1024) fail(std::to_string(grid.shared_bytes) + " bytes of shared memory");
  while (device.fibers.size() < static_cast<size_t>(grid.threads)) device.fibers.push_back(std::make_unique<Fiber>());
  gridDim = {static_cast<unsigned>(grid.blocks), 1, 1};
  blockDim = {static_cast<unsigned>(grid.threads), 1, 1};
  for (const unsigned block : numbers(grid.blocks, 1)) {
    blockIdx = {block, 0, 0};
    run_block(numbers(grid.threads, block + 2));
  }
}

unsigned char* shared_memory() { return device.shared.data(); }

void barrier(const Site& site) {
  const auto threads = static_cast<unsigned>(device.grid->threads);
  device.running->site = site;
  for (unsigned i = 0; i < threads; ++i) {
    const Fiber& other = *device.fibers[i];
    if (other.state == State::kAtBarrier && other.site.line() != site.line()) {
      fail("threads diverge: " + describe(i) + ", thread " + std::to_string(device.number) + " came to " + place(site));
    }
    if (other.state == State::kAtBarrier) break;  // those that wait wait at one line
  }
  if (++device.at_barrier < threads) {
    device.running->state = State::kAtBarrier;
    yield();
    return;
  }
  device.at_barrier = 0;
  for (unsigned i = 0; i < threads; ++i) device.fibers[i]->state = State::kReady;
}

uint64_t exchange(uint64_t value, unsigned from, const Site& site) {
  const int turn = meet(value, site);
  return warp().values[turn][from];
}

unsigned ballot(bool predicate, const Site& site) {
  const int turn = meet(predicate ? 1 : 0, site);
  unsigned bits = 0;
  for (unsigned i = 0; i < kWarp; ++i) bits |= static_cast<unsigned>(warp().values[turn][i]) << i;
  return bits;
}

unsigned match(uint64_t value, const Site& site) {
  const int turn = meet(value, site);
  unsigned bits = 0;
  for (unsigned i = 0; i < kWarp; ++i) bits |= (warp().values[turn][i] == value ? 1u : 0u) << i;
  return bits;
}

unsigned lane() { return device.number % kWarp; }

void check_mask(unsigned mask, const Site& site) {
  if (mask != 0xffffffffu) fail("a warp operation with a part of the warp at " + place(site));
}

}  // namespace conclave::emulation
