// SPDX-License-Identifier: Apache-2.0
// Mesh arithmetic: world = pp * dp * cp * tp, and ep * etp divides dp * cp * tp (docs: parallel axes).
#include <bit>

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
  const int64_t rows = train.micro_batch_size * config.data.seq_len;
  rules.require(
      rows >= 16, {"data.seq_len", "train.micro_batch_size", "parallel.reduction"},
      fmt::format("reduction canonical needs micro-batches of at least 16 tokens, not {}: matrix libraries change a "
                  "row's last bits with the number of rows below that",
                  rows));
}

}  // namespace

void check_layout(const RunConfig& config, Rules& rules) {
  check_world(config, rules);
  check_expert_axes(config, rules);
  check_batch(config, rules);
}

}  // namespace conclave::train
