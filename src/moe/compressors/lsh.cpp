// SPDX-License-Identifier: Apache-2.0
// LSH-MoE (Nie et al. 2024, arXiv 2411.08446): rows of a rank that are bound for one expert and have all hashes in
// common form a bucket b. Its mean μ_b travels, and a token takes from what comes back
//
//   y_t = E(μ_b) + (x_t − μ_b)                                   residual error compensation
//   dL/dx_t = dL/dy_t + 1/n_b Σ_{t' in b} (J_E(μ_b)ᵀ − 1) dL/dy_t'
//
// times its gate. Hashes have no gradient. The paper hashes with a drawn rotation, here it is the fast one of its
// source (cross_polytope.h). What it leaves open: a mean is of rows before their gates, sums are in double and in the
// order of tokens, hashes are fixed for a layer and the whole run.
#include <unordered_map>

#include "kernels/parallel.h"
#include "moe/compression.h"
#include "moe/compressors/cross_polytope.h"

namespace conclave::moe {
namespace {

class Lsh : public Compressor {
 public:
  Lsh(const CompressionConfig& config, const CompressionSite& site) {
    for (int64_t h = 0; h < config.hashes; ++h) {
      const Random random(site.seed, Purpose::kRowHash, static_cast<uint64_t>(h), static_cast<uint32_t>(site.layer));
      hashes_.emplace_back(random, site.width, config.dimensions);
    }
  }

  std::vector<int32_t> classes(const Tensor& x_TD) const override {
    const std::vector<int32_t> hashed = hashed_TH(x_TD);
    const size_t H = hashes_.size();
    // Hash after hash, each class falls apart into those of its rows that go on alike.
    std::vector<int32_t> classes(x_TD.size(0), 0);
    for (size_t h = 0; h < H; ++h) {
      std::unordered_map<int64_t, int32_t> numbers;
      for (size_t t = 0; t < classes.size(); ++t) {
        const int64_t both = classes[t] * 2 * hashes_[h].size() + hashed[t * H + h];
        classes[t] = numbers.try_emplace(both, static_cast<int32_t>(numbers.size())).first->second;
      }
    }
    return classes;
  }

 private:
  std::vector<int32_t> hashed_TH(const Tensor& x_TD) const {
    const int64_t T = x_TD.size(0), D = x_TD.size(1), H = std::ssize(hashes_), P = hashes_[0].size();
    std::vector<int32_t> hashed(T * H);
    by_dtype(x_TD, [&](auto zero) {
      const std::span<const decltype(zero)> x = elements<decltype(zero)>(x_TD);
      kernels::for_rows(T, H * P * 30, [&](int64_t begin, int64_t end) {
        std::vector<double> row(P);
        for (int64_t i = begin * H; i < end * H; ++i) {
          std::fill(row.begin(), row.end(), 0.0);
          std::copy_n(x.begin() + i / H * D, D, row.begin());
          hashed[i] = hashes_[i % H].nearest(row);
        }
      });
    });
    return hashed;
  }

  std::vector<CrossPolytope> hashes_;
};

}  // namespace

Compressor::Row lsh_compressor() {
  return {.type = CompressionType::kLsh,
          .info = {.type = "lsh",
                   .what = "the mean of rows of one expert that share all hashes, residuals added at home",
                   .source = "LSH-MoE, Nie et al. 2024, arXiv 2411.08446",
                   .equation = "y_t = E(mean of b) + x_t - mean of b, b: the rows with h(x) = h(x_t)",
                   .causality = Causality::kLeaky,
                   .evaluation = "each row by itself",
                   .exports = "all: an evaluation compresses nothing"},
          .make = [](const CompressionConfig& config, const CompressionSite& site) -> std::unique_ptr<Compressor> {
            return std::make_unique<Lsh>(config, site);
          }};
}

}  // namespace conclave::moe
