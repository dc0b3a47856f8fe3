// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_group.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "comm/nccl_transport.h"
#include "core/cuda_error.h"
#include "core/device.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

static_assert(sizeof(NcclId) == sizeof(ncclUniqueId));

ncclComm_t comm_of(NcclComm comm) { return static_cast<ncclComm_t>(comm); }
cudaStream_t stream_of(DeviceStream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(DeviceEvent event) { return static_cast<cudaEvent_t>(event); }

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
  }
  throw BugError("internal error: unknown element type");
}

ncclRedOp_t nccl_op(Reduce op) {
  switch (op) {
    case Reduce::kSum:
      return ncclSum;
    case Reduce::kMin:
      return ncclMin;
    case Reduce::kMax:
      return ncclMax;
  }
  throw BugError("internal error: unknown reduction");
}

// Splits share what their parent holds on the GPU: a mesh has many groups, and each would take hundreds of megabytes.
ncclConfig_t not_blocking() {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.splitShare = 1;
  return config;
}

class Nccl : public NcclLibrary {
 public:
  explicit Nccl(ComputeStream compute_stream) : compute_stream_(std::move(compute_stream)) {}

  NcclId make_id() override {
    ncclUniqueId id;
    if (state(ncclGetUniqueId(&id)) == NcclState::kFailed)
      throw CommError("NCCL cannot start the rendezvous: {}; NCCL_SOCKET_IFNAME names the network interface to use",
                      error_of(nullptr));
    NcclId bytes;
    std::memcpy(bytes.bytes.data(), &id, sizeof id);
    return bytes;
  }
  NcclState init(NcclComm& comm, int size, int rank, const NcclId& id) override {
    ncclUniqueId unique;
    std::memcpy(&unique, id.bytes.data(), sizeof unique);
    ncclConfig_t config = not_blocking();
    return state(ncclCommInitRankConfig(reinterpret_cast<ncclComm_t*>(&comm), size, unique, rank, &config));
  }
  NcclState split(NcclComm parent, int color, int key, NcclComm& part) override {
    ncclConfig_t config = not_blocking();
    return state(ncclCommSplit(comm_of(parent), color, key, reinterpret_cast<ncclComm_t*>(&part), &config));
  }
  NcclState state_of(NcclComm comm) override {
    ncclResult_t result = ncclSuccess;
    const NcclState asked = state(ncclCommGetAsyncError(comm_of(comm), &result));
    return asked == NcclState::kDone ? state(result) : asked;
  }
  std::string error_of(NcclComm comm) override {
    const char* detail = ncclGetLastError(comm_of(comm));
    return fmt::format("{}: {} (NCCL_DEBUG=INFO tells more)", ncclGetErrorString(last_failure_),
                       detail == nullptr || *detail == '\0' ? "no details" : detail);
  }
  NcclState finalize(NcclComm comm) override { return state(ncclCommFinalize(comm_of(comm))); }
  void destroy(NcclComm comm) override { state(ncclCommDestroy(comm_of(comm))); }
  void abort(NcclComm comm) override { state(ncclCommAbort(comm_of(comm))); }

  NcclState begin() override { return state(ncclGroupStart()); }
  NcclState end() override { return state(ncclGroupEnd()); }
  NcclState send(NcclPlace place, std::span<const std::byte> data, int to) override {
    return state(ncclSend(data.data(), data.size(), ncclInt8, to, comm_of(place.comm), stream_of(place.stream)));
  }
  NcclState receive(NcclPlace place, std::span<std::byte> data, int from) override {
    return state(ncclRecv(data.data(), data.size(), ncclInt8, from, comm_of(place.comm), stream_of(place.stream)));
  }
  NcclState broadcast(NcclPlace place, std::span<std::byte> data, int root) override {
    return state(ncclBroadcast(data.data(), data.data(), data.size(), ncclInt8, root, comm_of(place.comm),
                               stream_of(place.stream)));
  }
  NcclState all_gather(NcclPlace place, std::span<const std::byte> send, std::span<std::byte> recv) override {
    return state(
        ncclAllGather(send.data(), recv.data(), send.size(), ncclInt8, comm_of(place.comm), stream_of(place.stream)));
  }
  NcclState all_reduce(NcclPlace place, std::span<std::byte> data, DType dtype, Reduce op) override {
    return state(ncclAllReduce(data.data(), data.data(), data.size() / bytes_of(dtype), nccl_type(dtype), nccl_op(op),
                               comm_of(place.comm), stream_of(place.stream)));
  }

  bool is_device_memory(const void* address) override {
    cudaPointerAttributes attributes{};
    device::must(cudaPointerGetAttributes(&attributes, address), "cudaPointerGetAttributes");
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  }
  DeviceStream compute_stream() override { return compute_stream_ ? compute_stream_() : nullptr; }
  DeviceStream make_stream() override {
    cudaStream_t stream = nullptr;
    device::must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return stream;
  }
  void destroy_stream(DeviceStream stream) override { cudaStreamDestroy(stream_of(stream)); }
  DeviceEvent make_event() override {
    cudaEvent_t event = nullptr;
    device::must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return event;
  }
  void destroy_event(DeviceEvent event) override { cudaEventDestroy(event_of(event)); }
  void record(DeviceEvent event, DeviceStream stream) override {
    device::must(cudaEventRecord(event_of(event), stream_of(stream)), "cudaEventRecord");
  }
  void wait(DeviceStream stream, DeviceEvent event) override {
    device::must(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "cudaStreamWaitEvent");
  }
  void copy(std::span<const std::byte> from, std::byte* to, DeviceStream stream) override {
    device::must(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyDeviceToDevice, stream_of(stream)),
                 "cudaMemcpyAsync");
  }

 private:
  NcclState state(ncclResult_t result) {
    if (result == ncclSuccess) return NcclState::kDone;
    if (result == ncclInProgress) return NcclState::kInProgress;
    last_failure_ = result;
    return NcclState::kFailed;
  }

  ComputeStream compute_stream_;
  std::atomic<ncclResult_t> last_failure_{ncclSuccess};
};

}  // namespace

std::shared_ptr<NcclLibrary> make_nccl_library(ComputeStream compute_stream) {
  const device::Availability gpus = device::available();
  if (gpus.count == 0) throw ConfigError("comm.backend: nccl: {}; or use comm.backend: mpi", gpus.reason);
  return std::make_shared<Nccl>(std::move(compute_stream));
}

std::shared_ptr<Transport> make_nccl_world(const Group& host_group, ComputeStream compute_stream) {
  auto library = make_nccl_library(std::move(compute_stream));
  const std::vector<int> hosts = host_group.hosts();
  const int own_host = hosts[host_group.rank()];
  const auto local_rank = std::count(hosts.begin(), hosts.begin() + host_group.rank(), own_host);
  const auto local_size = std::count(hosts.begin(), hosts.end(), own_host);
  const int gpus = device::available().count;
  if (local_size > gpus)
    throw ConfigError(
        "comm.backend: nccl: {} ranks on the host of rank {} and {} GPUs: NCCL takes one rank for each; start fewer "
        "ranks on a host, or use train.device: cpu",
        local_size, host_group.rank(), gpus);
  device::use(static_cast<int>(local_rank));
  return make_nccl_transport(std::move(library), host_group);
}

}  // namespace conclave::comm
