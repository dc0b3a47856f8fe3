// SPDX-License-Identifier: Apache-2.0
// Mesh arithmetic: world = pp * dp * cp * tp, and ep * etp divides dp * cp * tp (docs: parallel axes).
#include <algorithm>
#include <bit>
#include <numeric>

#include "config/fields.h"
#include "model/model_shape.h"
#include "parallel/mesh.h"
#include "train/config_rules.h"

namespace conclave::train {
namespace {

bool divides(int64_t divisor, int64_t value) { return divisor > 0 && value % divisor == 0; }

// "1 2 4 8", the divisors of `value` that pass; at most twenty.
template <typename Fits>
std::string divisors(int64_t value, const Fits& fits) {
  std::string text;
  int found = 0;
  for (int64_t d = 1; d <= std::min<int64_t>(value, 32768) && found < 20; ++d) {
    if (value % d != 0 || !fits(d)) continue;
    text += fmt::format("{}{}", found == 0 ? "" : " ", d);
    ++found;
  }
  return text;
}

void check_world(const RunConfig& config, Rules& rules) {
  const parallel::ParallelConfig& mesh = config.parallel;
  const int64_t world = rules.options().world_size;
  const int64_t product = world_size(config);
  if (world <= 0 || product == world) return;
  const int64_t others = mesh.pp * mesh.cp * mesh.tp;
  const std::string mend = divides(others, world) ? fmt::format("leave parallel.dp out or set it to {}", world / others)
                                                  : fmt::format("use a multiple of {} ranks", others);
  rules.require(false, {"parallel.dp", "parallel.pp", "parallel.tp", "parallel.cp"},
                fmt::format("the mesh pp {} x dp {} x cp {} x tp {} takes {} ranks, but there are {}; {}, or start {}",
                            mesh.pp, *mesh.dp, mesh.cp, mesh.tp, product, world, mend, product));
}

void check_expert_axes(const RunConfig& config, Rules& rules) {
  const parallel::ParallelConfig& mesh = config.parallel;
  const int64_t ranks = *mesh.dp * mesh.cp * mesh.tp;
  const int64_t expert_ranks = mesh.ep * mesh.etp;
  const auto fits_ranks = [&](int64_t ep) { return divides(ep * mesh.etp, ranks); };
  rules.require(divides(expert_ranks, ranks), {"parallel.ep", "parallel.etp", "parallel.dp"},
                fmt::format("ep {} x etp {} does not divide the {} ranks of dp x cp x tp; ep may be {}", mesh.ep,
                            mesh.etp, ranks, divisors(ranks, fits_ranks)));
  rules.require(divides(mesh.etp, mesh.tp), {"parallel.etp", "parallel.tp"},
                fmt::format("etp {} does not divide tp {}", mesh.etp, mesh.tp));
  const int64_t inner = mesh.cp * mesh.tp;
  rules.require(divides(expert_ranks, inner) || divides(inner, expert_ranks), {"parallel.ep", "parallel.etp"},
                fmt::format("ep x etp = {} must divide cp x tp = {} or be a multiple of it", expert_ranks, inner));
  std::vector<int64_t> counts;
  if (const int64_t* one = std::get_if<int64_t>(&config.moe.num_experts)) {
    counts = {*one};
  } else {
    counts = std::get<std::vector<int64_t>>(config.moe.num_experts);
  }
  for (const int64_t count : config.moe.enabled ? counts : std::vector<int64_t>()) {
    const int64_t experts = count * config.moe.granularity;
    if (divides(mesh.ep, experts)) continue;
    rules.require(
        false, {"parallel.ep", "moe.num_experts"},
        fmt::format("{} experts cannot be split over ep={} ({} % {} = {}); divisors that fit {} ranks: {}", experts,
                    mesh.ep, experts, mesh.ep, experts % mesh.ep, ranks, divisors(experts, fits_ranks)));
    break;
  }
  rules.require(config.moe.dispatch.type != moe::DispatchType::kLocal || mesh.ep == 1,
                {"moe.dispatch.type", "parallel.ep"},
                fmt::format("local dispatch keeps tokens on their rank, but ep is {}; use auto or alltoall", mesh.ep));
}

// A rank has neighbouring experts, as many as every other one.
void check_even_widths(const RunConfig& config, Rules& rules) {
  const auto* widths = config.moe.expert_hidden_size ? config.moe.expert_hidden_size->each() : nullptr;
  if (widths == nullptr || widths->empty() || !divides(config.parallel.ep, std::ssize(*widths))) return;
  const int64_t local = std::ssize(*widths) / config.parallel.ep;
  std::vector<int64_t> sums;
  for (auto first = widths->begin(); first != widths->end(); first += local)
    sums.push_back(std::accumulate(first, first + local, int64_t{0}));
  const auto [least, most] = std::minmax_element(sums.begin(), sums.end());
  rules.warn_if(4 * *most > 5 * *least, {"moe.expert_hidden_size", "parallel.ep"},
                fmt::format("widths add up to {} on one rank of ep and to {} on another, which has that much more to "
                            "hold and to do; let wide and narrow experts take turns",
                            *least, *most));
}

void check_payload(const RunConfig& config, Rules& rules) {
  const auto& dispatch = config.moe.dispatch;
  const bool stays = dispatch.type == moe::DispatchType::kShared || dispatch.type == moe::DispatchType::kLocal;
  // Parts of a spread expert exchange rows among themselves, whatever carries them to the experts.
  rules.require(dispatch.payload == moe::DispatchPayload::kSame || !stays || config.parallel.etp > 1,
                {"moe.dispatch.payload", "moe.dispatch.type"},
                fmt::format("is the format of rows between hosts, and dispatch {} sends none there; use payload same, "
                            "or type auto, alltoall, hierarchical or allgather",
                            config::enum_name(dispatch.type)));
}

// Everything that tensor-parallel ranks share must divide; only the vocabulary may be shared unevenly.
void check_tensor_axis(const RunConfig& config, Rules& rules) {
  const int64_t tp = config.parallel.tp;
  const model::ModelConfig& model = config.model;
  rules.warn_if(tp == 1 && !config.parallel.sequence_parallel, {"parallel.sequence_parallel"},
                "has no effect without parallel.tp: every rank has whole tokens");
  if (tp <= 1) return;
  const int64_t heads = model.num_attention_heads, kv_heads = model.num_key_value_heads.value_or(heads);
  const int64_t tokens = config.train.micro_batch_size * config.data.seq_len;
  const std::string allowed = divisors(std::gcd(std::gcd(heads, kv_heads), tokens), [](int64_t) { return true; });
  const auto shared = [&](int64_t size, Rules::Keys keys, const char* what) {
    rules.require(divides(tp, size), keys,
                  fmt::format("{} {} cannot be shared by tp {} ranks ({} % {} = {}); tp may be {}", size, what, tp,
                              size, tp, size % tp, allowed));
  };
  shared(heads, {"parallel.tp", "model.num_attention_heads"}, "attention heads");
  shared(kv_heads, {"parallel.tp", "model.num_key_value_heads"}, "key/value heads");
  shared(tokens, {"parallel.tp", "data.seq_len", "train.micro_batch_size"}, "tokens of a micro-batch");
  rules.require(model.vocab_size >= tp, {"parallel.tp", "model.vocab_size"},
                fmt::format("a vocabulary of {} leaves ranks of tp {} without a token", model.vocab_size, tp));
}

void check_gradients(const RunConfig& config, Rules& rules) {
  const bool rounds = config.parallel.gradient_payload != parallel::GradientPayload::kSame;
  rules.require(!rounds || config.parallel.reduction == parallel::Reduction::kFast,
                {"parallel.gradient_payload", "parallel.reduction"},
                "rounds what each rank brings, so the sums depend on dp, and reduction canonical promises that they do "
                "not; use gradient_payload same, or reduction fast");
  rules.warn_if(rounds && world_size(config) == 1, {"parallel.gradient_payload"},
                "has no effect: one rank sends no gradients");
}

void check_batch(const RunConfig& config, Rules& rules) {
  const TrainConfig& train = config.train;
  const int64_t dp = *config.parallel.dp;
  const int64_t together = dp * train.micro_batch_size;
  rules.require(
      divides(together, train.global_batch_size), {"train.global_batch_size", "train.micro_batch_size", "parallel.dp"},
      fmt::format("{} sequences cannot be split over dp {} x micro_batch_size {} ({} % {} = {}); use a multiple of {}",
                  train.global_batch_size, dp, train.micro_batch_size, train.global_batch_size, together,
                  together > 0 ? train.global_batch_size % together : 0, together));
  if (config.parallel.reduction != parallel::Reduction::kCanonical || !divides(together, train.global_batch_size))
    return;
  const int64_t micro_batches = train.global_batch_size / together;
  rules.require(
      std::has_single_bit(static_cast<uint64_t>(micro_batches)), {"train.global_batch_size", "parallel.reduction"},
      fmt::format("reduction canonical adds on a binary tree, so each data-parallel rank needs 1, 2, 4, 8, ... "
                  "micro-batches, not {}; nearest batches: {} and {}",
                  micro_batches, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(micro_batches))) * together,
                  static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(micro_batches))) * together));
  // The router's products run on each rank's tokens.
  const int64_t rows = train.micro_batch_size * config.data.seq_len / std::max<int64_t>(1, config.parallel.tp);
  rules.require(
      rows >= 16, {"data.seq_len", "train.micro_batch_size", "parallel.reduction"},
      fmt::format(
          "reduction canonical needs at least 16 tokens of a micro-batch on each rank, not {}: matrix libraries "
          "change a row's last bits with the number of rows below that",
          rows));
}

// Of a rank and step; 0 where they do not divide.
int64_t train_micro_batches(const RunConfig& config) {
  const int64_t together = *config.parallel.dp * config.train.micro_batch_size;
  return divides(together, config.train.global_batch_size) ? config.train.global_batch_size / together : 0;
}

void check_executor(const RunConfig& config, Rules& rules) {
  const parallel::ParallelConfig& mesh = config.parallel;
  const bool chunked = mesh.executor == parallel::ExecutorType::kChunked;
  const int64_t tokens = config.train.micro_batch_size * config.data.seq_len;
  rules.warn_if(!chunked && mesh.chunks != parallel::ParallelConfig().chunks, {"parallel.chunks", "parallel.executor"},
                "has no effect: only executor chunked cuts tokens into chunks");
  rules.require(!chunked || mesh.chunks <= tokens, {"parallel.chunks", "train.micro_batch_size", "data.seq_len"},
                fmt::format("{} chunks of a micro-batch of {} tokens; use at most {}, better 2 to 8", mesh.chunks,
                            tokens, tokens));
  constexpr int64_t kMostChunks = 64;  // all of them may be under way in the windows of dispatch shared
  rules.require(!chunked || mesh.chunks <= kMostChunks, {"parallel.chunks"},
                fmt::format("{} chunks; use at most {}, better 2 to 8", mesh.chunks, kMostChunks));
  const bool interleaved = mesh.executor == parallel::ExecutorType::kInterleaved;
  rules.warn_if(!interleaved && mesh.micro_batches_in_flight != parallel::ParallelConfig().micro_batches_in_flight,
                {"parallel.micro_batches_in_flight", "parallel.executor"},
                "has no effect: only executor interleaved has several micro-batches in flight");
  constexpr int64_t kMostInFlight = 8;  // each holds its activations, and what it exchanges in a window
  rules.require(mesh.micro_batches_in_flight <= kMostInFlight, {"parallel.micro_batches_in_flight"},
                fmt::format("{} micro-batches in flight; use at most {}, better 2 or 3", mesh.micro_batches_in_flight,
                            kMostInFlight));
  const int64_t micro_batches = train_micro_batches(config);
  rules.warn_if(interleaved && micro_batches == 1,
                {"parallel.executor", "train.global_batch_size", "train.micro_batch_size"},
                "interleaved has one micro-batch a rank and step, and so nothing to run beside it but its own shared "
                "experts and weight gradients; halve train.micro_batch_size");
}

}  // namespace

void check_layout(const RunConfig& config, Rules& rules) {
  rules.require(parallel::is_rank_order(config.parallel.rank_order), {"parallel.rank_order"},
                "must name each of pp, dp, cp and tp once, slowest first");
  check_world(config, rules);
  check_expert_axes(config, rules);
  check_even_widths(config, rules);
  check_payload(config, rules);
  check_tensor_axis(config, rules);
  check_gradients(config, rules);
  check_batch(config, rules);
  check_executor(config, rules);
}

// Widths after granularity and in the dense twin. Only for numbers that fit together.
void check_tensor_widths(const RunConfig& config, Rules& rules) {
  const int64_t tp = config.parallel.tp, etp = config.parallel.etp;
  if (tp <= 1) return;
  RunConfig filled = config;
  fill_model(filled);
  const auto shape = model::model_shape(filled.model, filled.moe);
  const auto shared = [&](int64_t size, int64_t ranks, const std::string& key, const std::string& what, size_t layer) {
    rules.require(divides(ranks, size), {key, what == "etp" ? "moe.expert_hidden_size" : "model.ffn_hidden_size"},
                  fmt::format("the width {} of layer {} cannot be shared by {} {} ranks ({} % {} = {})", size, layer,
                              what, ranks, size, ranks, size % ranks));
  };
  for (size_t l = 0; l < shape.layers.size(); ++l) {
    const auto& layer = shape.layers[l];
    shared(layer.ffn_width, tp, "parallel.tp", "tp", l);
    shared(layer.shared_width, tp, "parallel.tp", "tp", l);
    if (!layer.moe) continue;
    for (const int64_t width : layer.different_widths()) shared(width, etp, "parallel.etp", "etp", l);
  }
}

}  // namespace conclave::train
