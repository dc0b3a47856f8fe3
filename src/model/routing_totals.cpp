// SPDX-License-Identifier: Apache-2.0
#include "model/routing_totals.h"

namespace conclave::model {
namespace {

void add_to(std::vector<int64_t>& sum, const std::vector<int64_t>& more) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
}

}  // namespace

RoutingTotals::RoutingTotals(const Transformer& model) {
  for (const int l : model.moe_layers()) {
    const size_t E = model.shape().layers[l].num_experts;
    LayerTotals totals;
    totals.chosen_E.assign(E, 0);
    totals.selected_E.assign(E, 0);
    totals.dispatched_E.assign(E, 0);
    totals.losses.assign(model.balancer().losses().size(), 0.0);
    layers_.push_back(std::move(totals));
  }
}

void RoutingTotals::add(const Transformer& model, nn::Frame& frame) {
  std::vector<const moe::RouterStatistics*> storage;
  const auto view = model.balance_view(frame, storage);
  for (size_t l = 0; l < layers_.size(); ++l) {
    const auto& s = *storage[l];
    auto& totals = layers_[l];
    for (int64_t b = 0; b < s.sequences; ++b)
      for (int64_t e = 0; e < s.experts; ++e) totals.chosen_E[e] += s.chosen_BE[b * s.experts + e];
    add_to(totals.selected_E, s.selected_E);
    add_to(totals.dispatched_E, s.dispatched_E);
    totals.tokens += s.tokens();
    totals.dropped += s.dropped;
    totals.entropy += s.entropy;
    totals.lse_squared += s.lse_squared;
    totals.targets += s.targets();
    for (size_t i = 0; i < totals.losses.size(); ++i) {
      totals.losses[i] += s.targets() * model.balancer().value(view, static_cast<int>(i), static_cast<int>(l));
    }
  }
}

void RoutingTotals::reduce(const comm::Group& dp) {
  std::vector<int64_t> counts;
  std::vector<double> sums;
  for (const auto& t : layers_) {
    for (const auto* v : {&t.chosen_E, &t.selected_E, &t.dispatched_E})
      counts.insert(counts.end(), v->begin(), v->end());
    counts.insert(counts.end(), {t.tokens, t.dropped});
    sums.insert(sums.end(), {t.entropy, t.lse_squared, t.targets});
    sums.insert(sums.end(), t.losses.begin(), t.losses.end());
  }
  dp.all_reduce(std::span<int64_t>(counts));
  std::vector<double> all(sums.size() * dp.size());
  dp.all_gather(std::span<const double>(sums), std::span<double>(all));
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = 0;
    for (int r = 0; r < dp.size(); ++r) sums[i] += all[r * sums.size() + i];
  }
  size_t c = 0, s = 0;
  for (auto& t : layers_) {
    for (auto* v : {&t.chosen_E, &t.selected_E, &t.dispatched_E})
      for (auto& value : *v) value = counts[c++];
    t.tokens = counts[c++];
    t.dropped = counts[c++];
    t.entropy = sums[s++];
    t.lse_squared = sums[s++];
    t.targets = sums[s++];
    for (auto& value : t.losses) value = sums[s++];
  }
}

void RoutingTotals::end_step(Transformer& model) const {
  for (size_t l = 0; l < layers_.size(); ++l) {
    model.balancer().end_step(layers_[l].selected_E, layers_[l].chosen_E, model.balance()[l]);
  }
}

}  // namespace conclave::model
