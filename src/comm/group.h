// SPDX-License-Identifier: Apache-2.0
// A group of ranks: a value with rank, size and split. A group of one is the identity, so callers never ask whether the
// run is distributed. Groups move bytes; they know no tensors. Every verb is collective: all ranks of the group call it
// in the same order. Ranks are threads of one process or MPI processes, with a GPU each for NCCL or none; see world.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace conclave::comm {

enum class DType { kFloat32, kFloat64, kInt32, kInt64 };
enum class Reduce { kSum, kMin, kMax };

size_t bytes_of(DType dtype);

// An operation under way. finish() waits for it; until then the caller neither writes the send buffer nor touches the
// receive buffer. Works are finished in the same order on every rank. Only a rank that fails may drop one unfinished.
class Work {
 public:
  Work() = default;
  explicit Work(std::function<void()> finish) : finish_(std::move(finish)) {}
  Work(Work&&) = default;
  Work& operator=(Work&&) = default;
  void finish() {
    if (finish_) std::exchange(finish_, nullptr)();
  }

 private:
  std::function<void()> finish_;
};

// Memory of every rank of a group that all of its ranks read and write. Whoever uses it orders the accesses, with
// atomics that lie in it; see shared_window.h.
class SharedMemory {
 public:
  virtual ~SharedMemory() = default;
  // As this rank sees it; starts on a 64-byte boundary, zero at first.
  virtual std::span<std::byte> region(int rank) const = 0;
};

// What a transport implements: one object per rank and group. Sizes are bytes; Group has already checked that they fit
// together. Verbs throw CommError when a peer or the network is lost.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;
  virtual std::shared_ptr<Transport> split(int color, int key) = 0;
  virtual void barrier() = 0;
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
  // recv_bytes[r] come from rank r, packed in rank order; the same list on every rank. `send` may be its own place in
  // `recv`.
  virtual void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                            std::span<const int64_t> recv_bytes) = 0;
  virtual void all_reduce(std::span<std::byte> data, DType dtype, Reduce op) = 0;
  // send_bytes[r] bytes go to rank r, packed in rank order; recv_bytes[r] come from rank r.
  virtual Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                                  std::span<std::byte> recv, std::span<const int64_t> recv_bytes) = 0;
  // For each rank the lowest rank on the same host. Collective.
  virtual std::vector<int> hosts() = 0;
  // `bytes`, the same on every rank, for each of them. Collective; freed collectively as well. Throws CommError where
  // the ranks are on several hosts or the host has no room.
  virtual std::shared_ptr<SharedMemory> share(int64_t bytes) = 0;
  // Returns when done() does, which peers bring about in shared memory. Keeps this rank's own transfers going.
  virtual void wait_until(const std::function<bool()>& done) = 0;
  // Moves transfers under way on; cheap, and not collective. Where they move by themselves, nothing.
  virtual void poll() {}
  // Ends the whole job at once, every rank, with `code`. Does not return for processes; thread ranks poison the group,
  // so that the others throw CommError instead of waiting.
  virtual void abort(int code, const std::string& reason) = 0;
};

class Group {
 public:
  Group();  // the group of one
  explicit Group(std::shared_ptr<Transport> transport);

  int rank() const;
  int size() const;
  std::string transport_name() const;  // "self", "threads", "mpi"
  // Ranks with equal `color` form a group, ordered by `key`, then by rank here.
  Group split(int color, int key) const;

  void barrier() const;
  // See Transport.
  std::vector<int> hosts() const;
  std::shared_ptr<SharedMemory> share(int64_t bytes) const;
  void wait_until(const std::function<bool()>& done) const;
  // Moves the transfers of this process on, those of other groups too. Not collective; cheap enough to be called
  // between any two products.
  void poll() const;
  // Ends every rank of the job with `code`; see Transport::abort. The group of one throws CommError.
  void abort(int code, const std::string& reason) const;

  template <typename T>
  void broadcast(std::span<T> data, int root) const {
    broadcast_bytes(std::as_writable_bytes(data), root);
  }
  // recv.size() == size() * send.size(), in rank order.
  template <typename T>
  void all_gather(std::span<const T> send, std::span<T> recv) const {
    const std::vector<int64_t> bytes(size(), static_cast<int64_t>(send.size_bytes()));
    all_gather_bytes(std::as_bytes(send), std::as_writable_bytes(recv), bytes);
  }
  // Pieces of different sizes: recv_counts[r] elements come from rank r; every rank passes the same counts. `send` may
  // be its own place in `recv`.
  template <typename T>
  void all_gather_v(std::span<const T> send, std::span<T> recv, std::span<const int64_t> recv_counts) const {
    all_gather_bytes(std::as_bytes(send), std::as_writable_bytes(recv), scaled(recv_counts, sizeof(T)));
  }
  template <typename T>
  std::vector<T> all_gather_value(const T& value) const {
    std::vector<T> all(size());
    all_gather(std::span<const T>(&value, 1), std::span<T>(all));
    return all;
  }
  // In place. The order of a floating-point sum is the transport's: parallel/tree_reduce.h has the order that is a
  // promise.
  void all_reduce(std::span<float> data, Reduce op = Reduce::kSum) const;
  void all_reduce(std::span<double> data, Reduce op = Reduce::kSum) const;
  void all_reduce(std::span<int32_t> data, Reduce op = Reduce::kSum) const;
  void all_reduce(std::span<int64_t> data, Reduce op = Reduce::kSum) const;

  // Counts are elements of T per rank.
  template <typename T>
  Work start_all_to_all_v(std::span<const T> send, std::span<const int64_t> send_counts, std::span<T> recv,
                          std::span<const int64_t> recv_counts) const {
    return start_all_to_all_v_bytes(std::as_bytes(send), scaled(send_counts, sizeof(T)), std::as_writable_bytes(recv),
                                    scaled(recv_counts, sizeof(T)));
  }
  template <typename T>
  void all_to_all_v(std::span<const T> send, std::span<const int64_t> send_counts, std::span<T> recv,
                    std::span<const int64_t> recv_counts) const {
    start_all_to_all_v(send, send_counts, recv, recv_counts).finish();
  }
  // send.size() == recv.size(), a multiple of size(); piece r goes to rank r.
  template <typename T>
  void all_to_all(std::span<const T> send, std::span<T> recv) const {
    const std::vector<int64_t> counts(size(), static_cast<int64_t>(send.size()) / size());
    all_to_all_v(send, std::span<const int64_t>(counts), recv, std::span<const int64_t>(counts));
  }
  // Every rank's text, in rank order, on every rank.
  std::vector<std::string> all_gather_text(const std::string& text) const;

 private:
  static std::vector<int64_t> scaled(std::span<const int64_t> counts, size_t item);
  void broadcast_bytes(std::span<std::byte> data, int root) const;
  void all_gather_bytes(std::span<const std::byte> send, std::span<std::byte> recv,
                        std::span<const int64_t> recv_bytes) const;
  Work start_all_to_all_v_bytes(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                                std::span<std::byte> recv, std::span<const int64_t> recv_bytes) const;

  std::shared_ptr<Transport> transport_;
};

}  // namespace conclave::comm
