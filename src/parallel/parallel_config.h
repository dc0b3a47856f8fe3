// SPDX-License-Identifier: Apache-2.0
// The `parallel:` section. world = pp * dp * cp * tp; ep is a view of the same ranks, never an extra axis.
#pragma once

#include "config/types.h"

namespace conclave::parallel {

enum class Reduction { kCanonical, kFast };
// The number format of gradients on their way to the rank that sums them.
enum class GradientPayload { kSame, kBf16 };
enum class ExecutorType { kSequential, kChunked, kInterleaved };

struct ParallelConfig {
  std::optional<int64_t> dp;
  int64_t tp = 1;
  int64_t ep = 1;
  int64_t etp = 1;
  int64_t cp = 1;
  int64_t pp = 1;
  int64_t zero = 1;
  bool overlap_grad_reduce = true;
  bool overlap_param_gather = true;
  bool sequence_parallel = true;
  Reduction reduction = Reduction::kFast;
  GradientPayload gradient_payload = GradientPayload::kSame;
  ExecutorType executor = ExecutorType::kSequential;
  int64_t chunks = 4;
  int64_t micro_batches_in_flight = 2;
  std::vector<std::string> rank_order = {"pp", "dp", "cp", "tp"};

  void fields(auto&& field) {
    field("dp", dp, "data-parallel ranks; null = what is left of the world", config::kRanks);
    field("tp", tp, "tensor-parallel ranks", config::kRanks);
    field("ep", ep, "ranks over which the experts of a layer are spread; divides dp * cp * tp", config::kRanks);
    field("etp", etp, "tensor-parallel ranks inside an expert", config::kRanks);
    field("cp", cp, "context-parallel ranks", config::kRanks);
    field("pp", pp, "pipeline stages", config::kRanks);
    field("zero", zero,
          "1 = each rank keeps and updates a shard of the AdamW moments of what it shares with others; 0 = all of them",
          config::kNotNegative);
    field("overlap_grad_reduce", overlap_grad_reduce,
          "gradients are summed over ranks, layer by layer, while backward goes on");
    field("overlap_param_gather", overlap_param_gather,
          "with zero: 1, new weights are gathered, layer by layer, while the next forward goes on");
    field("sequence_parallel", sequence_parallel, "with tp > 1: norms and routing on token shards");
    field("reduction", reduction,
          "canonical = bitwise independent of dp and ep; fast = micro-batches one after another, then ranks on a tree");
    field("gradient_payload", gradient_payload,
          "number format of gradients between the ranks that sum them: same, or bf16 = half the bytes, each rank's "
          "rounded once and summed in fp32; with reduction fast");
    field("executor", executor, "how the stages of a step are ordered");
    field("chunks", chunks, "token chunks of the chunked executor", config::kRanks);
    field("micro_batches_in_flight", micro_batches_in_flight,
          "micro-batches that the interleaved executor runs against each other", config::kRanks);
    field("rank_order", rank_order, "axes, slowest first");
  }
};

}  // namespace conclave::parallel

namespace conclave::config {
template <>
struct EnumNames<parallel::Reduction> {
  static constexpr std::array<std::pair<std::string_view, parallel::Reduction>, 2> kNames{
      {{"canonical", parallel::Reduction::kCanonical}, {"fast", parallel::Reduction::kFast}}};
};
template <>
struct EnumNames<parallel::GradientPayload> {
  static constexpr std::array<std::pair<std::string_view, parallel::GradientPayload>, 2> kNames{
      {{"same", parallel::GradientPayload::kSame}, {"bf16", parallel::GradientPayload::kBf16}}};
};
template <>
struct EnumNames<parallel::ExecutorType> {
  static constexpr std::array<std::pair<std::string_view, parallel::ExecutorType>, 3> kNames{
      {{"sequential", parallel::ExecutorType::kSequential},
       {"chunked", parallel::ExecutorType::kChunked},
       {"interleaved", parallel::ExecutorType::kInterleaved}}};
};
}  // namespace conclave::config
