// SPDX-License-Identifier: Apache-2.0
// Hash layers (Roller et al. 2021, arXiv 2106.04426): the token's id alone says which expert it takes, by a table that
// does not change; no parameters, no balancing loss. With k experts for each token the table has k columns of different
// experts, each of weight 1/k (times r). The table is state: tables balanced, clustered and dispersed are written into
// it when a run begins (train/hash_tables.h), from then on it is what the checkpoint says. Before that it is modulo's.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <numeric>

#include "moe/hash_tables.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

class HashRouter : public Router {
 public:
  HashRouter(const RouterConfig& config, const RouteShape& shape)
      : config_(config.hash.value_or(HashConfig())), shape_(shape), scale_(config.routed_scaling_factor) {}

  Choice route(const Tensor&, const RouteInput& in) const override {
    const auto table = in.state.values<int64_t>("hash_table");
    const int64_t k = shape_.top_k;
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < in.batch.tokens_count(); ++t)
      for (int64_t j = 0; j < k; ++j)
        ids.push_back(static_cast<int32_t>(table[hashed_id(in.batch, t, config_.feature) * k + j]));
    Choice choice;
    choice.experts = shape_.experts;
    choice.affinity = Affinity::kNone;
    choice.picks = even_picks(std::move(ids), in.batch.tokens_count());
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput& in) const override {
    choice.weights_C = at::full({choice.picks.count()}, scale_ / static_cast<double>(shape_.top_k), in.dtype);
  }
  Tensor backward(const Choice&, const ChoiceGradients&) const override { return {}; }

  std::vector<ScoreBlock> blocks(const RouteShape&) const override { return {}; }
  void declare(const RouteShape& shape, MethodState& state) const override;

 private:
  std::vector<int64_t> drawn_table(const RouteShape& shape) const;

  HashConfig config_;
  RouteShape shape_;
  double scale_;
};

std::vector<int64_t> HashRouter::drawn_table(const RouteShape& shape) const {
  const Random random(shape.seed, Purpose::kHashTable, 0, static_cast<uint32_t>(shape.layer));
  std::vector<int64_t> table, experts(shape.experts);
  for (int64_t v = 0; v < shape.vocab; ++v) {
    std::iota(experts.begin(), experts.end(), 0);
    for (int64_t j = 0; j < shape.top_k; ++j) {
      const int64_t left = shape.experts - j;
      const auto drawn = static_cast<int64_t>(random.uniform(v * shape.top_k + j) * static_cast<double>(left));
      std::swap(experts[j], experts[j + drawn]);
      table.push_back(experts[j]);
    }
  }
  return table;
}

void HashRouter::declare(const RouteShape& shape, MethodState& state) const {
  Tensor table = at::empty({shape.vocab, shape.top_k}, at::kLong);
  const auto entries = config_.table == HashTable::kRandom ? drawn_table(shape)
                                                           : modulo_table({shape.vocab, shape.experts, shape.top_k});
  std::copy(entries.begin(), entries.end(), elements<int64_t>(table).begin());
  state.declare("hash_table", table);
}

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<HashRouter>(config, shape);
}

}  // namespace

Router::Row hash_router() {
  return {{.type = "hash",
           .what = "a fixed table of token ids",
           .source = "Roller et al. 2021, arXiv 2106.04426",
           .equation = "S = table[id], w = r / k",
           .exports = "needs code: table of token ids"},
          make};
}

}  // namespace conclave::moe
