// SPDX-License-Identifier: Apache-2.0
// What the NCCL transport needs of NCCL and of the CUDA runtime, without their headers: so the transport's own logic is
// compiled in every build and tested against a library that is made up. It decides nothing; nccl_family.h and
// nccl_transport.h do.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "comm/group.h"

namespace conclave::comm {

// ncclUniqueId: made by one rank of a communicator, known to all.
struct NcclId {
  std::array<char, 128> bytes{};
};

// ncclComm_t, cudaStream_t and cudaEvent_t.
using NcclComm = void*;
using DeviceStream = void*;
using DeviceEvent = void*;

// Of a call or a communicator: nothing blocks, so what was called may be under way (ncclInProgress).
enum class NcclState { kDone, kInProgress, kFailed };

// Where an operation runs.
struct NcclPlace {
  NcclComm comm = nullptr;
  DeviceStream stream = nullptr;
};

// One per process. Calls that concern one communicator come from one thread at a time.
class NcclLibrary {
 public:
  virtual ~NcclLibrary() = default;

  virtual NcclId make_id() = 0;
  // Not blocking; `comm` is set at once and may only be asked for its state, or aborted, until that is kDone.
  virtual NcclState init(NcclComm& comm, int size, int rank, const NcclId& id) = 0;
  virtual NcclState split(NcclComm parent, int color, int key, NcclComm& part) = 0;
  virtual NcclState state_of(NcclComm comm) = 0;
  // What NCCL says about the last failure; `comm` may be null.
  virtual std::string error_of(NcclComm comm) = 0;
  // Waits, without blocking, for what is under way. Collective.
  virtual NcclState finalize(NcclComm comm) = 0;
  virtual void destroy(NcclComm comm) = 0;
  // Ends what is under way, also on the GPU, and frees the communicator. Not collective.
  virtual void abort(NcclComm comm) = 0;

  // Operations between begin() and end() go together: no order among them, one launch.
  virtual NcclState begin() = 0;
  virtual NcclState end() = 0;
  virtual NcclState send(NcclPlace place, std::span<const std::byte> data, int to) = 0;
  virtual NcclState receive(NcclPlace place, std::span<std::byte> data, int from) = 0;
  virtual NcclState broadcast(NcclPlace place, std::span<std::byte> data, int root) = 0;
  // Pieces of one size; `send` may be its own place in `recv`.
  virtual NcclState all_gather(NcclPlace place, std::span<const std::byte> send, std::span<std::byte> recv) = 0;
  virtual NcclState all_reduce(NcclPlace place, std::span<std::byte> data, DType dtype, Reduce op) = 0;

  // Whether a GPU owns the memory at `address`; pinned host memory is the host's. No synchronisation.
  virtual bool is_device_memory(const void* address) = 0;
  // The stream that this thread gives its computation to.
  virtual DeviceStream compute_stream() = 0;
  virtual DeviceStream make_stream() = 0;
  virtual void destroy_stream(DeviceStream stream) = 0;
  virtual DeviceEvent make_event() = 0;
  virtual void destroy_event(DeviceEvent event) = 0;
  virtual void record(DeviceEvent event, DeviceStream stream) = 0;
  // What `stream` is given from now on comes after what `event` recorded. The host does not wait.
  virtual void wait(DeviceStream stream, DeviceEvent event) = 0;
  // Between places of one GPU, on the stream.
  virtual void copy(std::span<const std::byte> from, std::byte* to, DeviceStream stream) = 0;
};

}  // namespace conclave::comm
