// SPDX-License-Identifier: Apache-2.0
#include "verify/faults.h"

#include <ATen/TensorOperators.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/optimizer.h"

namespace conclave::verify {
namespace {

struct NamedFault {
  const char* name;
  Fault fault;
};
constexpr std::array<NamedFault, 7> kFaults{{{"grad-scale", Fault::kGradScale},
                                             {"expert-scale", Fault::kExpertScale},
                                             {"lost-token", Fault::kLostToken},
                                             {"bias-local", Fault::kBiasLocal},
                                             {"norm-twice", Fault::kNormTwice},
                                             {"wrong-ids", Fault::kWrongIds},
                                             {"drifted-copy", Fault::kDriftedCopy}}};

// Another dispatcher, except that the first token gets nothing back.
class LosingDispatcher : public moe::Dispatcher {
 public:
  explicit LosingDispatcher(std::unique_ptr<Dispatcher> inner) : inner_(std::move(inner)) {}
  moe::DispatchPlan plan(const moe::Routing& routing) const override { return inner_->plan(routing); }
  moe::Transfer start_send(const moe::DispatchPlan& plan, const Tensor& x_TD, const Tensor& scalars_N) const override {
    return inner_->start_send(plan, x_TD, scalars_N);
  }
  moe::Rows finish_send(const moe::DispatchPlan& plan, moe::Transfer& transfer) const override {
    return inner_->finish_send(plan, transfer);
  }
  moe::Transfer start_give_back(const moe::DispatchPlan& plan, const Tensor& rows_RD,
                                const Tensor& scalars_R) const override {
    return inner_->start_give_back(plan, rows_RD, scalars_R);
  }
  moe::Rows finish_give_back(const moe::DispatchPlan& plan, moe::Transfer& transfer) const override {
    moe::Rows home = inner_->finish_give_back(plan, transfer);
    home.rows.narrow(0, 0, 1).zero_();
    return home;
  }

 private:
  std::unique_ptr<Dispatcher> inner_;
};

// What another observer sees and says, of ids that have moved on by one token.
class WrongIds : public moe::ChoiceObserver {
 public:
  explicit WrongIds(moe::ChoiceObserver* inner) : inner_(inner) {}
  bool chosen(const Batch& batch, int layer, moe::ExpertIds& ids) override {
    const int32_t first = ids.selected.offsets_T1.at(1);
    // With as many for each token the offsets stay.
    if (ids.selected.count() == first * ids.selected.tokens())
      std::rotate(ids.selected.ids_C.begin(), ids.selected.ids_C.begin() + first, ids.selected.ids_C.end());
    if (inner_ != nullptr) inner_->chosen(batch, layer, ids);
    return true;
  }

 private:
  moe::ChoiceObserver* inner_;
};

// How often each expert stands in `picks`, padding left out.
void count(const Batch& batch, const moe::Picks& picks, std::vector<int64_t>& counts_E) {
  for (int64_t t = 0; t < batch.tokens_count(); ++t)
    for (const int32_t id : picks.of(t)) counts_E[id] += batch.segment_ids[t] >= 0;
}

// A weight that every rank has: norms are never cut.
void drift(nn::Parameters& parameters) {
  for (const auto& parameter : parameters.all()) {
    if (parameter.expert || parameter.shape.size() != 1 || !parameter.parts[0].whole()) continue;
    nn::view_of(parameters.flat(false), parameter).narrow(0, 0, 1).add_(1e-3);
    return;
  }
}

}  // namespace

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const auto& fault : kFaults) names.emplace_back(fault.name);
  return names;
}

Fault fault_named(const std::string& name) {
  if (name.empty()) return Fault::kNone;
  for (const auto& fault : kFaults)
    if (name == fault.name) return fault.fault;
  throw UsageError("--plant: there is no fault '{}'; one of: {}", name, fmt::join(fault_names(), ", "));
}

void require_possible(Fault fault, const train::RunConfig& config, int64_t ranks) {
  if (fault == Fault::kNone) return;
  if (ranks < 2) throw ConfigError("--plant: one rank alone cannot have this fault; give -n 2 or more");
  const auto shape = model::model_shape(config.model, config.moe);
  const bool moe = std::any_of(shape.layers.begin(), shape.layers.end(), [](const auto& layer) { return layer.moe; });
  const bool needs_experts = fault != Fault::kGradScale && fault != Fault::kDriftedCopy;
  if (needs_experts && !moe) throw ConfigError("--plant: the model has no experts to damage");
  if (fault == Fault::kBiasLocal && config.moe.balance.bias.update_rate <= 0)
    throw ConfigError("--plant bias-local: the model has no loss-free bias; --set moe.balance.bias.update_rate=0.001");
}

Damage::Damage(const DamagePlan& plan, const parallel::Mesh& mesh, const moe::ChoiceRecord& truth)
    : fault_(plan.fault), sharded_(plan.sharded), mesh_(mesh), truth_(truth) {}

void Damage::reduced(Tensor dense, Tensor expert) {
  if (fault_ == Fault::kGradScale && on_last_rank()) dense.mul_(mesh_.dp().size());
  if (fault_ == Fault::kExpertScale) expert.mul_(mesh_.ep().size());
  if (fault_ != Fault::kNormTwice) return;
  std::vector<double> squares{kernels::sum_of_squares(expert)};
  mesh_.dp().all_reduce(std::span<double>(squares));
  // Without sharding each expert was counted on each of its owners.
  expert_squares_ = sharded_ ? squares[0] : squares[0] / mesh_.edp().size();
}

double Damage::normed(double norm) {
  if (fault_ != Fault::kNormTwice) return norm;
  return std::sqrt(norm * norm + (mesh_.dp().size() - 1) * expert_squares_);
}

void Damage::enter(model::TransformerConfig& config) {
  if (fault_ == Fault::kWrongIds && on_last_rank()) {
    wrong_ids_ = std::make_unique<WrongIds>(config.choices);
    config.choices = wrong_ids_.get();
  }
  if (fault_ != Fault::kLostToken || !on_last_rank()) return;
  config.make_dispatcher = [make = config.make_dispatcher](const moe::DispatchConfig& dispatch, const comm::Group& ep) {
    return std::make_unique<LosingDispatcher>(make(dispatch, ep));
  };
}

void Damage::before_step(model::Transformer& model) {
  if (fault_ != Fault::kBiasLocal) return;
  biases_.clear();
  for (const auto& layer : model.state().layers) biases_.push_back(layer.get("bias").clone());
}

void Damage::after_step(model::Transformer& model, std::span<const Batch> batches) const {
  if (fault_ == Fault::kDriftedCopy && on_last_rank() && mesh_.world().size() > 1) drift(model.parameters());
  if (fault_ != Fault::kBiasLocal) return;
  std::vector<moe::StepTotals> totals(biases_.size());
  for (size_t l = 0; l < biases_.size(); ++l) {
    totals[l].selected_E.assign(biases_[l].numel(), 0);
    totals[l].chosen_E = totals[l].selected_E;
    for (const Batch& batch : batches) {
      const auto& ids = truth_.at(batch, static_cast<int>(l));
      count(batch, ids.selected, totals[l].selected_E);
      count(batch, ids.unbiased, totals[l].chosen_E);
    }
    model.state().layers[l].get("bias").copy_(biases_[l]);
  }
  model.balancer().end_step(totals, model.state());
}

}  // namespace conclave::verify
