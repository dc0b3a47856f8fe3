// SPDX-License-Identifier: Apache-2.0
#include "model/routing_totals.h"

#include "core/tree_sum.h"

namespace conclave::model {
namespace {

void add_to(std::vector<int64_t>& sum, const std::vector<int64_t>& more) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
}

// Calls visit for each sum that is not a count, in one order.
template <typename Visit>
void for_each_sum(moe::StepTotals& t, const Visit& visit) {
  for (double* value : {&t.entropy, &t.lse_squared, &t.targets}) visit(*value);
  for (auto* values : {&t.losses, &t.sums})
    for (double& value : *values) visit(value);
}

}  // namespace

RoutingTotals::RoutingTotals(const Transformer& model) {
  for (const int l : model.moe_layers()) {
    const LayerShape& layer = model.shape().layers[l];
    const size_t E = layer.num_experts, columns = E + layer.home_experts;
    moe::StepTotals totals;
    totals.top_k = model.shape().layers[l].top_k;
    totals.chosen_E.assign(columns, 0);
    totals.selected_E.assign(columns, 0);
    totals.dispatched_E.assign(E, 0);
    totals.losses.assign(model.balancer().losses().size(), 0.0);
    if (model.router(static_cast<int>(layers_.size())).reads_outputs())
      totals.outputs_ED.assign(E * model.shape().hidden, 0);
    if (layer.compressed) totals.sent = 0;
    layers_.push_back(std::move(totals));
  }
}

void RoutingTotals::add(const Transformer& model, nn::Frame& frame) {
  std::vector<const moe::Decision*> decisions;
  add(model, model.loss_view(frame, decisions));
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (const auto sent = model.rows_sent(frame, static_cast<int>(l))) *layers_[l].sent += *sent;
    const moe::OutputSums* own = model.outputs(frame, static_cast<int>(l));
    if (own == nullptr) continue;
    const size_t first = model.mesh().ep().rank() * own->size();
    for (size_t i = 0; i < own->size(); ++i) layers_[l].outputs_ED[first + i] += (*own)[i];
  }
}

void RoutingTotals::add(const Transformer& model, const moe::LossView& view) {
  for (size_t l = 0; l < layers_.size(); ++l) {
    const auto& s = view.layers[l]->statistics;
    auto& totals = layers_[l];
    for (int64_t b = 0; b < s.sequences; ++b)
      for (int64_t e = 0; e < s.experts; ++e) totals.chosen_E[e] += s.chosen_BE[b * s.experts + e];
    add_to(totals.selected_E, s.selected_E);
    add_to(totals.dispatched_E, s.dispatched_E);
    totals.top_k = s.top_k;  // of this step
    totals.tokens += s.tokens();
    totals.dropped += s.dropped;
    totals.entropy = s.entropy;
    totals.lse_squared = s.lse_squared;
    totals.targets = s.targets();
    for (size_t i = 0; i < totals.losses.size(); ++i)
      totals.losses[i] = s.targets() * model.balancer().value(view, static_cast<int>(i), static_cast<int>(l));
    totals.sums = s.sums;
    for_each_sum(totals, [&](double value) { sums_.push_back(value); });
  }
}

void RoutingTotals::reduce(const comm::Group& dp) {
  std::vector<int64_t> counts;
  for (const auto& t : layers_) {
    for (const auto* v : {&t.chosen_E, &t.selected_E, &t.dispatched_E})
      counts.insert(counts.end(), v->begin(), v->end());
    counts.insert(counts.end(), {t.tokens, t.dropped});
  }
  dp.all_reduce(std::span<int64_t>(counts));
  // A rank's micro-batches follow each other in the global order, and so do the ranks.
  std::vector<double> all(sums_.size() * dp.size());
  dp.all_gather(std::span<const double>(sums_), std::span<double>(all));
  size_t width = 0, c = 0, s = 0;
  for (auto& t : layers_) for_each_sum(t, [&](double) { ++width; });
  for (auto& t : layers_) {
    for (auto* v : {&t.chosen_E, &t.selected_E, &t.dispatched_E})
      for (auto& value : *v) value = counts[c++];
    t.tokens = counts[c++];
    t.dropped = counts[c++];
    for_each_sum(t, [&](double& value) {
      std::vector<double> terms;
      for (size_t i = s++; i < all.size(); i += width) terms.push_back(all[i]);
      value = tree_sum(std::span<const double>(terms));
    });
  }
}

void RoutingTotals::reduce_own(const comm::Group& world) {
  for (auto& layer : layers_) {
    if (!layer.outputs_ED.empty()) world.all_reduce(std::span<int64_t>(layer.outputs_ED));
    if (layer.sent) world.all_reduce(std::span<int64_t>(&*layer.sent, 1));
  }
}

void RoutingTotals::end_step(Transformer& model) const {
  model.balancer().end_step(layers_, model.state());
  for (size_t l = 0; l < layers_.size(); ++l)
    model.router(static_cast<int>(l)).end_step(layers_[l], model.state().layers[l]);
}

}  // namespace conclave::model
