// SPDX-License-Identifier: Apache-2.0
// The `memory:` section.
#pragma once

#include "config/types.h"

namespace conclave::model {

// What a block drops after forward and makes again in backward, with the same bits.
enum class Recompute {
  kNone,       // nothing
  kSelective,  // what takes no matrix product: normalised inputs (activations of SwiGLU are never kept)
  kAttention,  // that, and queries, keys, values and what attention made of them
  kFfn,        // kSelective, and what feed-forward networks and experts have before SwiGLU
  kFull,       // everything but the block's input and the routing
};

struct MemoryConfig {
  Recompute recompute = Recompute::kNone;

  void fields(auto&& field) {
    field("recompute", recompute,
          "what backward makes again: nothing, norms (selective), norms and attention, norms and SwiGLU's inputs "
          "(ffn), or "
          "whole blocks (full)");
  }
};

}  // namespace conclave::model

namespace conclave::config {
template <>
struct EnumNames<model::Recompute> {
  static constexpr std::array<std::pair<std::string_view, model::Recompute>, 5> kNames{
      {{"none", model::Recompute::kNone},
       {"selective", model::Recompute::kSelective},
       {"attention", model::Recompute::kAttention},
       {"ffn", model::Recompute::kFfn},
       {"full", model::Recompute::kFull}}};
};
}  // namespace conclave::config
