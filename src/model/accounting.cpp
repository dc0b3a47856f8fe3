// SPDX-License-Identifier: Apache-2.0
#include "model/accounting.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "kernels/optimizer.h"
#include "model/buckets.h"

namespace conclave::model {
namespace {

constexpr int64_t kMatrices = 3;  // of a SwiGLU block: gate, up, down
constexpr int64_t kFloatBytes = 4;

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t query_width(const ModelShape& shape) { return shape.heads * shape.head_dim; }
int64_t key_width(const ModelShape& shape) { return shape.kv_heads * shape.head_dim; }
int64_t swiglu(const ModelShape& shape, int64_t width) { return kMatrices * shape.hidden * width; }
int64_t projections(const ModelShape& shape) { return 2 * shape.hidden * (query_width(shape) + key_width(shape)); }
// What a token is planned to use of what all experts have together: under even routing as many of one width as of
// another.
int64_t planned(const LayerShape& layer, int64_t of_all) {
  if (layer.num_experts == 0) return 0;
  return std::llround(layer.mean_picks * static_cast<double>(of_all) / static_cast<double>(layer.num_experts));
}
int64_t all_experts(const ModelShape& shape, const LayerShape& layer) {
  return swiglu(shape, layer.widths_from(0, layer.num_experts));
}
// Merging the weights of experts, for each token of a segment.
int64_t merging(const ModelShape& shape, const LayerShape& layer) {
  return layer.merges() ? all_experts(shape, layer) / layer.merge_segment : 0;
}
// Both matrices of a gated unit with three gates.
int64_t recurrent_unit(const LayerShape& layer) { return 2 * 3 * layer.router_state * layer.router_state; }
// Products that score a token, but for that unit.
int64_t router(const ModelShape& shape, const LayerShape& layer) {
  const int64_t inputs = layer.router_state > 0 ? layer.router_state : (layer.router_context ? 2 : 1) * shape.hidden;
  return inputs * layer.router_columns + shape.hidden * layer.router_state +
         shape.hidden * (layer.shared_gate + 2 * layer.branch_gate);
}

// Small parameters beside the router's matrix that a layer has of its own, wherever that is.
int64_t beside_router(const ModelShape& shape, const LayerShape& layer) {
  return shape.hidden * (layer.home_vectors() + layer.shared_gate + 2 * layer.branch_gate) + 2 * layer.branch_gate;
}

// Parameters of all of that.
int64_t router_parameters(const ModelShape& shape, const LayerShape& layer) {
  if (layer.router_elsewhere) return beside_router(shape, layer);
  const int64_t rates = layer.router_context ? shape.hidden : 0;
  const int64_t unit = layer.router_unit ? recurrent_unit(layer) + 2 * 3 * layer.router_state : 0;
  return router(shape, layer) + unit + rates + shape.hidden * layer.home_vectors() + 2 * layer.branch_gate;
}

int64_t norms(const ModelShape& shape, const LayerShape& layer) {
  // Arctic's experts read the block input through a norm of their own.
  const int64_t block = (layer.residual_dense ? 3 : 2) * shape.hidden;
  if (shape.qk_norm == QkNorm::kFull) return block + query_width(shape) + key_width(shape);
  if (shape.qk_norm == QkNorm::kHead) return block + 2 * shape.head_dim;
  return block;
}

LayerParameters layer_parameters(const ModelShape& shape, const LayerShape& layer, Counter counter) {
  LayerParameters count{.attention = projections(shape),
                        .norms = 0,
                        .ffn = swiglu(shape, layer.ffn_width),
                        .router = 0,
                        .shared = swiglu(shape, layer.shared_width + layer.fallback_width),
                        .experts = all_experts(shape, layer),
                        .active_experts = planned(layer, all_experts(shape, layer))};
  if (counter == Counter::kPaper) return count;
  if (shape.qkv_bias) count.attention += query_width(shape) + 2 * key_width(shape);
  count.norms = norms(shape, layer);
  count.router = router_parameters(shape, layer);
  return count;
}

// Logits and scores (of noisy routers also both blocks, noise and deviation), and of each choice its row, weight and
// id.
int64_t routing_numbers(const LayerShape& layer) {
  if (!layer.moe) return 0;
  const int64_t columns = layer.num_experts + layer.home_experts;
  const int64_t of_experts = layer.router_columns == 0 ? 0 : layer.router_columns > columns ? 7 : 2;
  return of_experts * columns + 3 * layer.most_picks;
}

// Rows [D] of a token that are kept besides: Arctic's block input after its norm, contexts, both branches of a gated
// sum, what a fallback expert gave, and what its experts gave.
int64_t kept_rows(const LayerShape& layer) {
  return layer.residual_dense + layer.router_context + 2 * layer.branch_gate + (layer.fallback_width > 0 ? 1 : 0) +
         (layer.outputs_kept ? layer.most_picks : 0);
}

// A recurrent router's state, its projected input, three gates and a term of the last.
int64_t state_numbers(const LayerShape& layer) { return 6 * layer.router_state; }

// Numbers that forward keeps of each token of a micro-batch for backward.
int64_t saved_numbers(const ModelShape& shape, const LayerShape& layer, const MemoryPlan& plan) {
  const int64_t h = shape.hidden, tp = plan.tp;
  const bool norms_again = plan.recompute != Recompute::kNone;
  const int64_t stream_ranks = plan.sequence_parallel ? tp : 1;
  // Inputs of both residual branches and their normalised copies; q, k, v, attention output, log-sum-exp of each head.
  int64_t saved = (norms_again ? 2 : 4) * h / stream_ranks;
  if (plan.recompute != Recompute::kAttention)
    saved += (2 * query_width(shape) + 2 * key_width(shape) + shape.heads) / tp;
  // What sequence parallelism gathers for the attention and for what stands beside the experts.
  if (stream_ranks > 1 && !norms_again)
    saved += h * (layer.ffn_width + layer.shared_width + layer.fallback_width > 0 ? 2 : 1);
  // Pre-activations of gate and up; their product is cheaper to repeat than to keep.
  const int64_t beside = layer.ffn_width + layer.shared_width + layer.fallback_width;
  const int64_t widths = plan.recompute == Recompute::kFfn ? 0 : beside + layer.widest(layer.most_picks);
  // Rows that came from other ranks are kept, local ones are not. An expert that is spread has them on every rank.
  const int64_t remote_rows =
      layer.moe ? layer.most_picks * h * plan.etp * (plan.sources() - 1) / (plan.sources() * tp) : 0;
  // A segment's merged weights and their gradients.
  const int64_t merged = layer.merges() ? 2 * swiglu(shape, layer.expert_width) / layer.merge_segment : 0;
  // Means and what experts make of them, at worst of each row.
  const int64_t buckets = layer.compressed ? (norms_again ? 1 : 2) * layer.most_picks * h / tp : 0;
  return saved + 2 * widths / tp + routing_numbers(layer) + remote_rows + kept_rows(layer) * h + state_numbers(layer) +
         merged + buckets;
}

int64_t saved_numbers(const ModelShape& shape, const MemoryPlan& plan) {
  int64_t saved = 0, largest = 0;
  for (const LayerShape& layer : shape.layers) {
    const int64_t block = saved_numbers(shape, layer, plan);
    largest = std::max(largest, block);
    saved += plan.recompute == Recompute::kFull
                 ? shape.hidden / (plan.sequence_parallel ? plan.tp : 1) + routing_numbers(layer)
                 : block;
  }
  // Of whole blocks, the one that is being made again is there.
  return saved + (plan.recompute == Recompute::kFull ? largest : 0);
}

// Parameters of the experts of the rank that has most: each has equally many experts, but of any widths.
int64_t most_local_experts(const ModelShape& shape, const MemoryPlan& plan) {
  int64_t most = 0;
  for (int64_t r = 0; r < plan.ep; ++r) {
    int64_t own = 0;
    for (const LayerShape& layer : shape.layers) {
      const int64_t count = layer.num_experts / plan.ep;
      own += swiglu(shape, layer.widths_from(r * count, count));
    }
    most = std::max(most, own);
  }
  return most / plan.etp;
}

// Sums of a rank's experts that travel one by one, since the tree has others between them.
int64_t travelling(const MemoryPlan& plan) {
  if (plan.reduction != parallel::Reduction::kCanonical) return 1;
  const bool folded = plan.tp == 1 && std::has_single_bit(static_cast<uint64_t>(plan.sources()));
  return folded ? 1 : plan.sources();
}

// What arrives of the buckets under way. An owner's part of a bucket is at least a slice of the norm.
int64_t bytes_under_way(int64_t copies, int64_t elements, int64_t travelling) {
  if (copies == 1) return 0;
  const int64_t bucket = std::min(kMostBucketElements, elements);
  const int64_t received = std::max(bucket, copies * std::min(kernels::kNormSlice, bucket));
  const int64_t buckets = std::min<int64_t>(parallel::kBucketsUnderWay, divided_up(elements, kMostBucketElements));
  return kFloatBytes * travelling * buckets * received;
}

}  // namespace

int64_t ParameterCount::experts() const {
  int64_t sum = 0;
  for (const auto& layer : layers) sum += layer.experts;
  return sum;
}

int64_t ParameterCount::total() const {
  int64_t sum = embedding + head + final_norm;
  for (const auto& layer : layers) sum += layer.total();
  return sum;
}

int64_t ParameterCount::active() const {
  int64_t sum = embedding + head + final_norm;
  for (const auto& layer : layers) sum += layer.active();
  return sum;
}

ParameterCount count_parameters(const ModelShape& shape, Counter counter) {
  ParameterCount count;
  count.embedding = shape.vocab * shape.hidden;
  count.head = shape.tied ? 0 : count.embedding;
  count.final_norm = counter == Counter::kExact ? shape.hidden : 0;
  for (const auto& layer : shape.layers) count.layers.push_back(layer_parameters(shape, layer, counter));
  return count;
}

FlopCount count_flops(const ModelShape& shape, Counter counter, int64_t sequence_length) {
  FlopCount flops;
  const int64_t square = 4 * sequence_length * query_width(shape);  // scores and values over all positions
  for (const auto& layer : shape.layers) {
    flops.projections += 2 * projections(shape);
    flops.attention += counter == Counter::kExact ? square / 2 : square;
    flops.ffn += 2 * swiglu(shape, layer.ffn_width);
    // The scores of a merge are of its segment, and too few to count.
    flops.router +=
        counter == Counter::kExact && !layer.merges() ? 2 * (router(shape, layer) + recurrent_unit(layer)) : 0;
    flops.shared += 2 * swiglu(shape, layer.shared_width + layer.fallback_width);
    flops.experts += planned(layer, 2 * all_experts(shape, layer)) + 2 * merging(shape, layer);
  }
  flops.head = 2 * shape.vocab * shape.hidden;
  return flops;
}

int64_t gradient_buffers(const MemoryPlan& plan) {
  if (plan.dp < 1 || plan.micro_batches % plan.dp != 0)
    throw ConfigError(
        "{} micro-batches cannot be shared by {} data-parallel ranks: change train.global_batch_size or "
        "train.micro_batch_size",
        plan.micro_batches, plan.dp);
  if (plan.reduction == parallel::Reduction::kFast) return 1;
  const auto local = static_cast<uint64_t>(plan.micro_batches / plan.dp);
  if (!std::has_single_bit(local))
    throw ConfigError(
        "parallel.reduction: canonical needs a power of two of micro-batches on each rank, this is {}: change "
        "train.global_batch_size, or use reduction: fast",
        local);
  // Sums of complete subtrees beside the micro-batches that run: 1 + log2 of all while at most two run.
  int64_t most = 0;
  // A round of micro-batches begins when the one before it has ended.
  for (uint64_t done = 0; done < local; done += static_cast<uint64_t>(plan.in_flight))
    most = std::max<int64_t>(most, std::popcount(done) + std::min<int64_t>(plan.in_flight, local - done));
  return most;
}

RankBytes rank_bytes(const ModelShape& shape, const MemoryPlan& plan) {
  const int64_t buffers = gradient_buffers(plan);
  if (plan.sources() < 1 || plan.dp * plan.tp % plan.sources() != 0)
    throw ConfigError("parallel.ep {} x etp {} does not divide the {} ranks of dp x tp", plan.ep, plan.etp,
                      plan.dp * plan.tp);
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    if (shape.layers[i].num_experts % plan.ep != 0)
      throw ConfigError("parallel.ep {} does not divide the {} experts of layer {}", plan.ep,
                        shape.layers[i].num_experts, i);
  }
  const auto count = count_parameters(shape, Counter::kExact);
  const int64_t local_experts = most_local_experts(shape, plan);
  int64_t whole = count.final_norm;  // on every tensor-parallel rank
  for (const auto& layer : count.layers) whole += layer.norms + layer.router;
  const int64_t replicated = whole + divided_up(count.total() - count.experts() - whole, plan.tp);
  // A local expert sees tokens of every rank of its expert group; canonical keeps their gradients apart until the tree
  // over global micro-batches says in which order to add them.
  const int64_t sources = plan.reduction == parallel::Reduction::kCanonical ? plan.sources() : 1;
  RankBytes bytes;
  bytes.parameters = kFloatBytes * (replicated + local_experts);
  bytes.gradients = kFloatBytes * buffers * (replicated + sources * local_experts);
  const int64_t dense_owners = plan.zero == 1 ? plan.dp : 1, expert_owners = plan.zero == 1 ? plan.expert_copies() : 1;
  bytes.moments = 2 * kFloatBytes * (divided_up(replicated, dense_owners) + divided_up(local_experts, expert_owners));
  bytes.activations = std::min(plan.in_flight, plan.micro_batches / plan.dp) * kFloatBytes * plan.micro_batch_tokens *
                      (saved_numbers(shape, plan) +
                       2 * shape.hidden / (plan.sequence_parallel ? plan.tp : 1));  // final norm: input and output
  // As bf16 what goes out and what arrives are half as large each, and what arrived is made floats again.
  bytes.received = (plan.gradient_payload == parallel::GradientPayload::kBf16 ? 2 : 1) *
                   (bytes_under_way(plan.dp, replicated, 1) +
                    bytes_under_way(plan.expert_copies(), local_experts, travelling(plan)));
  return bytes;
}

}  // namespace conclave::model
