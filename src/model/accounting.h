// SPDX-License-Identifier: Apache-2.0
// Parameters, FLOPs and bytes of a model, from its shape alone. FLOPs are those of matrix products (2 per
// multiply-add); norms, activations, softmax and the optimizer are not counted. Routing is taken as dropless, and as
// even among experts of different widths: a token uses k of their mean width.
#pragma once

#include <cstdint>
#include <vector>

#include "model/memory_config.h"
#include "model/model_shape.h"
#include "parallel/parallel_config.h"

namespace conclave::model {

// kExact: every trained parameter, and the FLOPs that run, the causal half of attention only.
// kPaper: ReMoE's closed forms (arXiv 2412.14711): no norms, router, gates or biases; full attention square. The
// paper's "182M" is the *active* count of this counter, with both vocabulary matrices in it.
enum class Counter { kExact, kPaper };

struct LayerParameters {
  int64_t attention = 0;  // projections and their biases
  int64_t norms = 0;
  int64_t ffn = 0;     // dense, alone or beside the experts
  int64_t router = 0;  // router and shared gate
  int64_t shared = 0;
  int64_t experts = 0;         // all of them
  int64_t active_experts = 0;  // k of them, of their mean width

  int64_t always() const { return attention + norms + ffn + router + shared; }
  int64_t total() const { return always() + experts; }
  int64_t active() const { return always() + active_experts; }
};

struct ParameterCount {
  int64_t embedding = 0;
  int64_t head = 0;  // 0 when tied: the embedding is the head
  int64_t final_norm = 0;
  std::vector<LayerParameters> layers;

  int64_t experts() const;
  int64_t total() const;
  // What one token uses, vocabulary matrices counted whole (Mixtral and OLMoE publish this count).
  int64_t active() const;
  // The same without an embedding that is only looked up, of which a token reads one row (DBRX and Arctic publish
  // this).
  int64_t active_without_lookup() const { return active() - (head > 0 ? embedding : 0); }
};

ParameterCount count_parameters(const ModelShape& shape, Counter counter);

// Per token, forward pass, averaged over the positions of a sequence.
struct FlopCount {
  int64_t projections = 0;
  int64_t attention = 0;  // scores and values
  int64_t ffn = 0;        // dense
  int64_t router = 0;     // router and shared gate
  int64_t shared = 0;
  int64_t experts = 0;
  int64_t head = 0;

  int64_t forward() const { return projections + attention + ffn + router + shared + experts + head; }
  // Forward, and twice as much backward; nothing recomputed.
  int64_t training() const { return 3 * forward(); }
};

FlopCount count_flops(const ModelShape& shape, Counter counter, int64_t sequence_length);

// How a step is spread over ranks (context and pipeline parallelism are 1).
struct MemoryPlan {
  int64_t dp = 1;
  int64_t tp = 1;
  int64_t ep = 1;
  int64_t etp = 1;
  bool sequence_parallel = true;
  int64_t micro_batches = 1;       // M of one optimizer step, over all ranks
  int64_t micro_batch_tokens = 0;  // of the tp ranks together
  parallel::Reduction reduction = parallel::Reduction::kFast;
  Recompute recompute = Recompute::kNone;
  int64_t zero = 0;       // 1: moments are sharded over the ranks that hold the same parameters
  int64_t in_flight = 1;  // micro-batches that an executor runs against each other
  parallel::GradientPayload gradient_payload = parallel::GradientPayload::kSame;

  int64_t sources() const { return ep * etp; }                   // ranks that send tokens to a rank's experts
  int64_t expert_copies() const { return dp * tp / sources(); }  // edp
};

// Bytes on one rank in fp32, where a parameter is its own master copy. Moments that are sharded are an even division;
// real shards differ by up to a slice of the norm, 65,536 parameters. Activations are an estimate of what forward
// keeps for backward of the micro-batches in flight under balanced routing: no padding, no logits (cross entropy runs
// in chunks), no buffers of the allocator or the transport.
struct RankBytes {
  int64_t parameters = 0;
  int64_t gradients = 0;
  int64_t master = 0;
  int64_t moments = 0;
  int64_t activations = 0;
  int64_t received = 0;  // estimate: other ranks' gradients of the buckets that are being summed

  int64_t total() const { return parameters + gradients + master + moments + activations + received; }
};

// Gradient sets a rank holds: canonical reduction sums micro-batches on a binary tree, which takes 1 + log2(M / dp) of
// them, and more with more than two in flight. Throws ConfigError where M / dp is not a power of two (canonical) or not
// whole.
int64_t gradient_buffers(const MemoryPlan& plan);

// Throws ConfigError where ep x etp does not divide dp x tp, or ep a layer's experts.
RankBytes rank_bytes(const ModelShape& shape, const MemoryPlan& plan);

}  // namespace conclave::model
