// SPDX-License-Identifier: Apache-2.0
// The `comm:` section.
#pragma once

#include "config/types.h"

namespace conclave::comm {

enum class ProgressBy { kPoll, kThread };

struct CommConfig {
  std::string backend = "auto";
  ProgressBy progress = ProgressBy::kPoll;

  void fields(auto&& field) {
    field("backend", backend, "transport between ranks: auto, mpi, or nccl (what GPUs hold; needs a CUDA build)");
    field(
        "progress", progress,
        "who advances exchanges under way: poll = the computing thread between its products, thread = one of its own");
  }
};

}  // namespace conclave::comm

namespace conclave::config {
template <>
struct EnumNames<comm::ProgressBy> {
  static constexpr std::array<std::pair<std::string_view, comm::ProgressBy>, 2> kNames{
      {{"poll", comm::ProgressBy::kPoll}, {"thread", comm::ProgressBy::kThread}}};
};
}  // namespace conclave::config
