// SPDX-License-Identifier: Apache-2.0
#include "comm/mpi_group.h"

#include <mpi.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>

#include "comm/mpi_error.h"
#include "comm/mpi_shared_memory.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

// Owns a communicator. Freeing one is collective, so a rank that unwinds, or comes after MPI_Finalize, leaves it.
class Communicator {
 public:
  explicit Communicator(MPI_Comm handle) : handle_(handle), unwinding_(std::uncaught_exceptions()) {
    MPI_Comm_set_errhandler(handle_, MPI_ERRORS_RETURN);
  }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  ~Communicator() {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized && std::uncaught_exceptions() == unwinding_) MPI_Comm_free(&handle_);
  }
  MPI_Comm get() const { return handle_; }

 private:
  MPI_Comm handle_;
  int unwinding_;
};

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return MPI_FLOAT;
    case DType::kFloat64:
      return MPI_DOUBLE;
    case DType::kInt32:
      return MPI_INT32_T;
    case DType::kInt64:
      return MPI_INT64_T;
  }
  throw BugError("internal error: unknown element type");
}

MPI_Op mpi_op(Reduce op) {
  switch (op) {
    case Reduce::kSum:
      return MPI_SUM;
    case Reduce::kMin:
      return MPI_MIN;
    case Reduce::kMax:
      return MPI_MAX;
  }
  throw BugError("internal error: unknown reduction");
}

// The messages of one all-to-all. Dropped unfinished it takes its receives back, so that a late message does not land
// in memory that is somebody else's by then.
class Exchange : public Pending {
 public:
  Exchange(std::shared_ptr<Communicator> comm, int64_t piece_bytes, int tag)
      : comm_(std::move(comm)), piece_bytes_(piece_bytes), tag_(tag) {}
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  ~Exchange() override {
    for (size_t i = 0; i < expected_.size() && i < requests_.size(); ++i)
      if (requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
  }

  // All receives come before the first send.
  void receive(std::byte* to, int64_t bytes, int from) {
    for (int64_t at = 0; at < bytes; at += piece_bytes_) {
      const int count = static_cast<int>(std::min(piece_bytes_, bytes - at));
      must(MPI_Irecv(to + at, count, MPI_BYTE, from, tag_, comm_->get(), &requests_.emplace_back()), "MPI_Irecv",
           comm_->get());
      expected_.push_back({from, count});
    }
  }
  void send(const std::byte* from, int64_t bytes, int to) {
    for (int64_t at = 0; at < bytes; at += piece_bytes_) {
      const int count = static_cast<int>(std::min(piece_bytes_, bytes - at));
      must(MPI_Isend(from + at, count, MPI_BYTE, to, tag_, comm_->get(), &requests_.emplace_back()), "MPI_Isend",
           comm_->get());
    }
  }
  // One by one: Open MPI 4.1's MPI_Waitall may spin for ever when one of its messages has failed. A test of one
  // message moves all of them on.
  bool advance() override {
    for (; next_ < requests_.size(); ++next_) {
      MPI_Status status;
      int complete = 0;
      must(MPI_Test(&requests_[next_], &complete, &status), "MPI_Test", comm_->get());
      if (!complete) return false;
      check_arrived(status);
    }
    return true;
  }
  void wait() override {
    for (; next_ < requests_.size(); ++next_) {
      MPI_Status status;
      must(MPI_Wait(&requests_[next_], &status), "MPI_Wait", comm_->get());
      check_arrived(status);
    }
  }

 private:
  struct Piece {
    int rank;
    int bytes;
  };
  // Message next_ is done.
  void check_arrived(const MPI_Status& status) const {
    if (next_ >= expected_.size()) return;
    int count = 0;
    must(MPI_Get_count(&status, MPI_BYTE, &count), "MPI_Get_count", comm_->get());
    if (count != expected_[next_].bytes)
      throw BugError("internal error: all_to_all: rank {} sent {} bytes where {} were expected", expected_[next_].rank,
                     count, expected_[next_].bytes);
  }

  std::shared_ptr<Communicator> comm_;
  int64_t piece_bytes_;
  int tag_;
  std::vector<MPI_Request> requests_;  // receives first
  std::vector<Piece> expected_;        // one per receive
  size_t next_ = 0;                    // the first message that is not known to be done
};

// A work that `progress` moves on. Whoever drops it takes it out of there first.
Work make_work(const std::shared_ptr<Progress>& progress, std::shared_ptr<Pending> pending) {
  struct UnderWay {
    UnderWay(std::shared_ptr<Progress> p, std::shared_ptr<Pending> what)
        : progress(std::move(p)), pending(std::move(what)) {
      progress->add(pending);
    }
    ~UnderWay() {
      if (pending) progress->drop(pending);
    }
    void finish() { progress->finish(std::exchange(pending, nullptr)); }
    std::shared_ptr<Progress> progress;
    std::shared_ptr<Pending> pending;
  };
  return Work([under_way = std::make_shared<UnderWay>(progress, std::move(pending))] { under_way->finish(); });
}

std::vector<int64_t> offsets_of(std::span<const int64_t> sizes) {
  std::vector<int64_t> offsets(sizes.size() + 1, 0);
  for (size_t i = 0; i < sizes.size(); ++i) offsets[i + 1] = offsets[i] + sizes[i];
  return offsets;
}

class MpiTransport : public Transport {
 public:
  MpiTransport(std::shared_ptr<Communicator> comm, const MpiLimits& limits, std::shared_ptr<Progress> progress)
      : comm_(std::move(comm)), limits_(limits), progress_(std::move(progress)) {
    must(MPI_Comm_rank(comm_->get(), &rank_), "MPI_Comm_rank", comm_->get());
    must(MPI_Comm_size(comm_->get(), &size_), "MPI_Comm_size", comm_->get());
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "mpi"; }

  std::shared_ptr<Transport> split(int color, int key) override {
    MPI_Comm part = MPI_COMM_NULL;
    must(MPI_Comm_split(comm_->get(), color, key, &part), "MPI_Comm_split", comm_->get());
    return std::make_shared<MpiTransport>(std::make_shared<Communicator>(part), limits_, progress_);
  }

  void barrier() override { must(MPI_Barrier(comm_->get()), "MPI_Barrier", comm_->get()); }

  void broadcast(std::span<std::byte> data, int root) override {
    for_each_cut(std::ssize(data), 1, [&](int64_t at, int count) {
      must(MPI_Bcast(data.data() + at, count, MPI_BYTE, root, comm_->get()), "MPI_Bcast", comm_->get());
    });
  }

  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    const std::vector<int64_t> offsets = offsets_of(recv_bytes);
    std::byte* own = recv.data() + offsets[rank_];
    if (!send.empty() && send.data() != own) std::memcpy(own, send.data(), send.size());
    if (offsets.back() > limits_.collective_bytes) {
      for (int r = 0; r < size_; ++r) broadcast(recv.subspan(offsets[r], recv_bytes[r]), r);
      return;
    }
    const std::vector<int> counts(recv_bytes.begin(), recv_bytes.end());
    const std::vector<int> places(offsets.begin(), offsets.end() - 1);
    must(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, recv.data(), counts.data(), places.data(), MPI_BYTE,
                        comm_->get()),
         "MPI_Allgatherv", comm_->get());
  }

  void all_reduce(std::span<std::byte> data, DType dtype, Reduce op) override {
    for_each_cut(std::ssize(data), static_cast<int64_t>(bytes_of(dtype)), [&](int64_t at, int count) {
      must(MPI_Allreduce(MPI_IN_PLACE, data.data() + at, count, mpi_type(dtype), mpi_op(op), comm_->get()),
           "MPI_Allreduce", comm_->get());
    });
  }

  // Own messages instead of MPI_Ialltoallv: counts beyond int need no agreement between the ranks, and on slow links
  // the pieces keep both directions busy where one long message does not.
  Work start_all_to_all_v(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                          std::span<std::byte> recv, std::span<const int64_t> recv_bytes) override {
    const std::vector<int64_t> from = offsets_of(send_bytes);
    const std::vector<int64_t> to = offsets_of(recv_bytes);
    auto exchange = std::make_shared<Exchange>(comm_, limits_.piece_bytes, next_tag());
    // Each rank begins with its right neighbour, so that not everybody sends to rank 0 first.
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ - step + size_) % size_;
      exchange->receive(recv.data() + to[peer], recv_bytes[peer], peer);
    }
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      exchange->send(send.data() + from[peer], send_bytes[peer], peer);
    }
    if (send_bytes[rank_] > 0)
      std::memcpy(recv.data() + to[rank_], send.data() + from[rank_], static_cast<size_t>(send_bytes[rank_]));
    if (std::max(from.back(), to.back()) > limits_.eager_bytes) return make_work(progress_, std::move(exchange));
    return Work([exchange = std::move(exchange)] { exchange->wait(); });
  }

  std::vector<int> hosts() override {
    MPI_Comm part = MPI_COMM_NULL;
    must(MPI_Comm_split_type(comm_->get(), MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &part), "MPI_Comm_split_type",
         comm_->get());
    const Communicator host(part);
    std::vector<int> first(size_, rank_);
    must(MPI_Bcast(&first[rank_], 1, MPI_INT, 0, host.get()), "MPI_Bcast", host.get());
    must(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, first.data(), 1, MPI_INT, comm_->get()), "MPI_Allgather",
         comm_->get());
    return first;
  }

  std::shared_ptr<SharedMemory> share(int64_t bytes) override { return make_mpi_shared_memory(comm_->get(), bytes); }

  // A peer may wait for the end of a message of this rank before it does what is waited for here, and Open MPI moves
  // messages only inside its calls.
  void wait_until(const std::function<bool()>& done) override {
    constexpr int kLooksBeforeYield = 200;
    for (int looks = 0; !done(); ++looks) {
      if (looks < kLooksBeforeYield) continue;
      int found = 0;
      must(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_->get(), &found, MPI_STATUS_IGNORE), "MPI_Iprobe",
           comm_->get());
      std::this_thread::yield();
    }
  }
  void poll() override { progress_->poll(); }

  void abort(int code, const std::string&) override {
    MPI_Abort(MPI_COMM_WORLD, code);
    std::_Exit(code);
  }

 private:
  // Calls body(byte offset, count of items) for consecutive cuts, each below the limit.
  template <typename Body>
  void for_each_cut(int64_t bytes, int64_t item, Body body) {
    const int64_t step = std::max(limits_.collective_bytes / item, int64_t{1}) * item;
    for (int64_t at = 0; at < bytes; at += step) body(at, static_cast<int>(std::min(step, bytes - at) / item));
  }
  // Works are matched by their number: one that a failing rank dropped cannot swallow the messages of the next.
  int next_tag() { return next_tag_ = (next_tag_ + 1) % 32768; }

  std::shared_ptr<Communicator> comm_;
  MpiLimits limits_;
  std::shared_ptr<Progress> progress_;
  int rank_ = 0;
  int size_ = 1;
  int next_tag_ = 0;
};

}  // namespace

MpiSession::MpiSession() : unwinding_(std::uncaught_exceptions()) {
  int provided = MPI_THREAD_SINGLE;
  must(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread", MPI_COMM_NULL);
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_MULTIPLE)
    throw CommError(
        "this MPI offers thread level {} of {} (MPI_THREAD_MULTIPLE), which transfers beside the computation need; use "
        "an "
        "Open MPI built with --enable-mpi-thread-multiple (Debian's is)",
        provided, MPI_THREAD_MULTIPLE);
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() == unwinding_) MPI_Finalize();
}

std::shared_ptr<Transport> make_mpi_world(const MpiLimits& limits, std::shared_ptr<Progress> progress) {
  MPI_Comm world = MPI_COMM_NULL;
  must(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup", MPI_COMM_WORLD);
  return std::make_shared<MpiTransport>(std::make_shared<Communicator>(world), limits, std::move(progress));
}

}  // namespace conclave::comm
