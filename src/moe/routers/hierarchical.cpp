// SPDX-License-Identifier: Apache-2.0
// Hierarchical gating (Shazeer et al. 2017, arXiv 1701.06538, appendix B): a first gate over groups of neighbouring
// experts, in each group a gate over its members, y = Σ_i Σ_j G1(x)_i · G2_i(x)_j · E_ij(x). A token takes the group_k
// best groups and in each the top_k / group_k best members. Either gate has the form that the router's keys give top-k
// routing; weights multiply. Losses see the product of both softmaxes over all experts, which is itself the softmax of
// the sum of both log-softmaxes.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "kernels/softmax.h"
#include "moe/gate.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

RouterConfig without_scale(RouterConfig config) {
  config.routed_scaling_factor = 1;
  return config;
}

class HierarchicalRouter : public Router {
 public:
  HierarchicalRouter(const RouterConfig& config, const RouteShape& shape)
      : groups_gate_(config), members_gate_(without_scale(config)) {
    const HierarchicalConfig own = config.hierarchical.value_or(HierarchicalConfig());
    groups_ = own.groups, group_k_ = own.group_k;
    members_ = shape.experts / groups_, member_k_ = shape.top_k / group_k_;
    check(members_ * groups_ == shape.experts && member_k_ * group_k_ == shape.top_k, "groups are equal");
  }

  Choice route(const Tensor& scores_TS, const RouteInput&) const override {
    Choice choice;
    choice.scores_TS = scores_TS;
    choice.experts = groups_ * members_;
    Gates gates = scored(choice);
    by_dtype(scores_TS, [&](auto zero) { join_scores<decltype(zero)>(gates, choice); });
    choose(gates, choice);
    weigh_with(gates, choice);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override {
    Gates gates = scored(choice);
    weigh_with(gates, choice);
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override;

  std::vector<ScoreBlock> blocks(const RouteShape& shape) const override {
    return {{"router.groups", groups_, {}}, {"router", shape.experts, {}}};
  }

 private:
  // Both levels as choices of their own: rows of `members` are (token, group).
  struct Gates {
    Choice groups, members;
  };
  Gates scored(const Choice& choice) const {
    const Tensor& scores = choice.scores_TS;
    const int64_t T = scores.size(0);
    return {groups_gate_.scored(scores.narrow(1, 0, groups_).contiguous()),
            members_gate_.scored(scores.narrow(1, groups_, choice.experts).contiguous().view({T * groups_, members_}))};
  }
  template <typename T>
  void join_scores(const Gates& gates, Choice& choice) const;
  void choose(const Gates& gates, Choice& choice) const;
  // Which pick of either level each pick comes from; sets the levels' picks.
  struct Origin {
    std::vector<int32_t> group_C, member_C;
  };
  Origin split_picks(const Choice& choice, Gates& gates) const;
  Origin weigh_levels(const Choice& choice, Gates& gates) const {
    Origin origin = split_picks(choice, gates);
    groups_gate_.weigh(gates.groups);
    members_gate_.weigh(gates.members);
    return origin;
  }
  void weigh_with(Gates& gates, Choice& choice) const;
  // What losses say of the joint logits, for the logits of both levels.
  template <typename T>
  void add_joint(const Choice& choice, const Gates& gates, std::span<const T> djoint, Tensor& dgroups,
                 Tensor& dmembers) const;

  Gate groups_gate_, members_gate_;
  int64_t groups_ = 1, group_k_ = 1, members_ = 1, member_k_ = 1;
};

template <typename T>
void HierarchicalRouter::join_scores(const Gates& gates, Choice& choice) const {
  const int64_t tokens = choice.scores_TS.size(0);
  choice.logits_TE = at::empty({tokens, choice.experts}, choice.scores_TS.options());
  choice.probs_TE = at::empty_like(choice.logits_TE);
  const auto zg = elements<T>(gates.groups.logits_TE), lg = elements<T>(gates.groups.lse_T),
             zm = elements<T>(gates.members.logits_TE), lm = elements<T>(gates.members.lse_T),
             pg = elements<T>(gates.groups.probs_TE), pm = elements<T>(gates.members.probs_TE),
             logits = elements<T>(choice.logits_TE), probs = elements<T>(choice.probs_TE);
  for (int64_t row = 0; row < tokens * groups_; ++row) {
    for (int64_t i = row * members_; i < (row + 1) * members_; ++i) {
      logits[i] = (zg[row] - lg[row / groups_]) + (zm[i] - lm[row]);
      probs[i] = pg[row] * pm[i];
    }
  }
}

void HierarchicalRouter::choose(const Gates& gates, Choice& choice) const {
  const int64_t tokens = choice.scores_TS.size(0);
  std::vector<int32_t> groups(tokens * group_k_), members(tokens * groups_ * member_k_), ids;
  kernels::top_k_rows(groups_gate_.selection(gates.groups), group_k_, groups);
  kernels::top_k_rows(members_gate_.selection(gates.members), member_k_, members);
  for (int64_t i = 0; i < tokens * group_k_; ++i) {
    const int64_t row = i / group_k_ * groups_ + groups[i];
    for (int64_t j = 0; j < member_k_; ++j)
      ids.push_back(static_cast<int32_t>(groups[i] * members_ + members[row * member_k_ + j]));
  }
  // Best first by the product of both levels.
  by_dtype(choice.probs_TE, [&](auto zero) {
    const auto probs = elements<decltype(zero)>(choice.probs_TE);
    const int64_t picks = group_k_ * member_k_;
    for (int64_t t = 0; t < tokens; ++t)
      std::stable_sort(ids.begin() + t * picks, ids.begin() + (t + 1) * picks, [&](int32_t a, int32_t b) {
        return probs[t * choice.experts + a] > probs[t * choice.experts + b];
      });
  });
  choice.picks = even_picks(std::move(ids), tokens);
}

HierarchicalRouter::Origin HierarchicalRouter::split_picks(const Choice& choice, Gates& gates) const {
  Origin origin;
  origin.group_C.resize(choice.picks.count());
  origin.member_C.resize(choice.picks.count());
  Picks &groups = gates.groups.picks, &members = gates.members.picks;
  groups.offsets_T1 = members.offsets_T1 = {0};
  for (int64_t t = 0; t < choice.tokens(); ++t) {
    const auto ids = choice.picks.of(t);
    const auto first = choice.picks.offsets_T1[t];
    const auto begin = std::ssize(groups.ids_C);
    for (const int32_t id : ids) {
      const auto group = static_cast<int32_t>(id / members_);
      if (std::find(groups.ids_C.begin() + begin, groups.ids_C.end(), group) == groups.ids_C.end())
        groups.ids_C.push_back(group);
    }
    for (int64_t g = 0; g < groups_; ++g) {
      for (size_t j = 0; j < ids.size(); ++j) {
        if (ids[j] / members_ != g) continue;
        const auto at = std::find(groups.ids_C.begin() + begin, groups.ids_C.end(), g);
        origin.group_C[first + j] = static_cast<int32_t>(at - groups.ids_C.begin());
        origin.member_C[first + j] = static_cast<int32_t>(members.ids_C.size());
        members.ids_C.push_back(static_cast<int32_t>(ids[j] % members_));
      }
      members.offsets_T1.push_back(static_cast<int32_t>(members.ids_C.size()));
    }
    groups.offsets_T1.push_back(static_cast<int32_t>(groups.ids_C.size()));
  }
  return origin;
}

void HierarchicalRouter::weigh_with(Gates& gates, Choice& choice) const {
  const Origin origin = weigh_levels(choice, gates);
  choice.weights_C = at::empty({choice.picks.count()}, choice.scores_TS.options());
  by_dtype(choice.weights_C, [&](auto zero) {
    using T = decltype(zero);
    const auto weights = elements<T>(choice.weights_C), wg = elements<T>(gates.groups.weights_C),
               wm = elements<T>(gates.members.weights_C);
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = wg[origin.group_C[i]] * wm[origin.member_C[i]];
  });
}

template <typename T>
void HierarchicalRouter::add_joint(const Choice& choice, const Gates& gates, std::span<const T> djoint, Tensor& dgroups,
                                   Tensor& dmembers) const {
  const auto pg = elements<T>(gates.groups.probs_TE), pm = elements<T>(gates.members.probs_TE),
             dzg = elements<T>(dgroups), dzm = elements<T>(dmembers);
  for (int64_t t = 0; t < choice.tokens(); ++t) {
    std::vector<T> of_group(groups_, T{0});
    T all = 0;
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t row = t * groups_ + g;
      for (int64_t i = row * members_; i < (row + 1) * members_; ++i) of_group[g] += djoint[i];
      for (int64_t i = row * members_; i < (row + 1) * members_; ++i) dzm[i] += djoint[i] - pm[i] * of_group[g];
      all += of_group[g];
    }
    for (int64_t g = 0; g < groups_; ++g) dzg[t * groups_ + g] += of_group[g] - pg[t * groups_ + g] * all;
  }
}

Tensor HierarchicalRouter::backward(const Choice& choice, const ChoiceGradients& gradients) const {
  Gates gates = scored(choice);
  const Origin origin = weigh_levels(choice, gates);
  Tensor dgroups_C = at::zeros_like(gates.groups.weights_C), dmembers_C = at::zeros_like(gates.members.weights_C);
  Tensor dgroups, dmembers;
  by_dtype(choice.scores_TS, [&](auto zero) {
    using T = decltype(zero);
    const auto dw = elements<T>(gradients.weights_C), wg = elements<T>(gates.groups.weights_C),
               wm = elements<T>(gates.members.weights_C), dg = elements<T>(dgroups_C), dm = elements<T>(dmembers_C);
    for (size_t i = 0; i < dw.size(); ++i) {
      dg[origin.group_C[i]] += dw[i] * wm[origin.member_C[i]];
      dm[origin.member_C[i]] += dw[i] * wg[origin.group_C[i]];
    }
    dgroups = groups_gate_.backward(gates.groups, dgroups_C);
    dmembers = members_gate_.backward(gates.members, dmembers_C);
    if (gradients.logits_TE.defined()) add_joint<T>(choice, gates, elements<T>(gradients.logits_TE), dgroups, dmembers);
  });
  return at::cat({dgroups, dmembers.view({choice.tokens(), choice.experts})}, 1);
}

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<HierarchicalRouter>(config, shape);
}

}  // namespace

Router::Row hierarchical_router() {
  return {{.type = "hierarchical",
           .what = "the best groups of experts, and in each its best members",
           .source = "Shazeer et al. 2017, arXiv 1701.06538, appendix B",
           .equation = "w_ij = G1(x)_i G2_i(x)_j, top-k in both",
           .exports = "needs code: two gates"},
          make};
}

}  // namespace conclave::moe
