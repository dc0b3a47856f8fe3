// SPDX-License-Identifier: Apache-2.0
#include "app/rank_device.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <regex>

#include "config/fields.h"
#include "nn/attention_product.h"

namespace conclave::app {

comm::DeviceChoice take_device(const train::RunConfig& config, const comm::World& world, Log& log) {
  const std::string& wanted = config.train.device;
  if (wanted == "cpu") return {};
  const auto obstacles = train::device_obstacles(config);
  comm::DeviceChoice choice;
  if (wanted == "auto" && world.size() > 1 && config.comm.backend == "mpi") {
    choice.reason = "comm.backend: mpi moves what lies in host memory; auto or nccl go with GPUs";
  } else if (wanted == "auto" && !obstacles.empty()) {
    // Known before anybody looks for a GPU. Where one is asked for, the configuration was refused.
    choice.reason = fmt::format("{}: no {} on a GPU yet; {}", obstacles[0].key, obstacles[0].what, obstacles[0].remedy);
  } else {
    choice = comm::choose_device(wanted, world.group(), device::available());
  }
  if (!choice.on_gpu) {
    log.info("device cpu: {}", choice.reason);
    return choice;
  }
  device::use(choice.index);
  // cuBLAS repeats its bits only with a workspace of a set size, asked for before its first product.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  check(at::globalContext().hasCUDA(), "LibTorch was asked for CUDA before its CUDA library was loaded");
  // A run that is repeated has the same bits: flash attention's backward adds in any order otherwise. Filling memory
  // that nobody reads is what deterministic algorithms also ask for, and is not wanted.
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  log.info("device cuda: GPU {}, {}", choice.index, device::describe(choice.index));
  return choice;
}

void try_device_path(const model::Transformer& model, const train::RunConfig& config, Log& log) {
  const model::DevicePath* path = model.device_path();
  if (path == nullptr) return;
  const auto kernel = nn::attention_kernel(path->device, path->compute, config.data.document_mask);
  nn::try_attention(kernel, path->device, path->compute, model.shape().head_dim);
  log.info("computes in {} beside fp32 masters; attention: {}", path->compute == at::kBFloat16 ? "bf16" : "fp32",
           nn::name_of(kernel));
}

kernels::HostReads::Around shown_waits(std::shared_ptr<comm::Activity> activity) {
  return [activity = std::move(activity)](const std::function<void()>& wait) {
    const comm::Inside inside(*activity, comm::kDeviceWait);
    wait();
  };
}

namespace {

// LibTorch's words for what was asked for and what there is, in ours; its first line where it has found others.
std::string shortage(const std::string& text) {
  static const std::regex kNumbers(
      R"(Tried to allocate ([0-9.]+ \w+)\. GPU ([0-9]+) has a total capacity of ([0-9.]+ \w+) )"
      R"(of which ([0-9.]+ \w+) is free)");
  std::smatch found;
  if (!std::regex_search(text, found, kNumbers))
    return fmt::format("the GPU has no memory left: {}", text.substr(0, text.find('\n')));
  return fmt::format("GPU {} has no memory left: {} more were asked for, and of its {} are free {}", found[2].str(),
                     found[1].str(), found[3].str(), found[4].str());
}

std::string advice(const train::RunConfig& config) {
  std::string keys = config.train.micro_batch_size > 1
                         ? fmt::format("Set train.micro_batch_size below {}", config.train.micro_batch_size)
                         : std::string("train.micro_batch_size is 1 already; set a smaller data.seq_len");
  if (config.memory.recompute != model::Recompute::kFull)
    keys += fmt::format(", or memory.recompute: full (now {})", config::enum_name(config.memory.recompute));
  return keys + ", or take more ranks. `conclave info CONFIG` counts what a rank holds";
}

}  // namespace

int with_memory_advice(const train::RunConfig& config, const std::function<int()>& body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ExitCode::kBug, fmt::format("{}.\n  {}.", shortage(error.what_without_backtrace()), advice(config)));
  }
}

std::string backend_for(const train::RunConfig& config, const comm::DeviceChoice& device, int ranks) {
  if (ranks == 1) return config.comm.backend;  // nothing travels
  return device.on_gpu && config.comm.backend == "auto" ? "nccl" : config.comm.backend;
}

}  // namespace conclave::app
