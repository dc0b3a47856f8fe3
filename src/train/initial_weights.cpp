// SPDX-License-Identifier: Apache-2.0
#include "train/initial_weights.h"

#include <fmt/ranges.h>

#include <cstring>
#include <set>

#include "checkpoint/agreement.h"
#include "config/json.h"
#include "core/error.h"
#include "model/model_shape.h"
#include "train/run_state.h"
#include "train/weight_origins.h"

namespace conclave::train {
namespace {

using checkpoint::Resumed;
using parallel::StateDict;
using parallel::StateEntry;

// A tensor's part and where it begins.
struct Planned {
  const StateEntry* entry;
  Origin origin;
};

struct Plan {
  std::vector<Planned> parts;
  std::set<int64_t> upcycled;        // layers
  std::vector<std::string> drawn;    // names that stay as they were drawn
  std::vector<std::string> missing;  // names, or what does not fit
};

std::vector<std::string> sources_of(const config::TextOrList& init_from) {
  if (const auto* one = std::get_if<std::string>(&init_from)) return {*one};
  return std::get<std::vector<std::string>>(init_from);
}

std::vector<Resumed> open_runs(const RunConfig& config, const comm::Group& world, Log& log) {
  std::vector<Resumed> runs;
  for (const auto& where : sources_of(*config.model.init_from)) runs.push_back(open_earlier_run(where, world, log));
  return runs;
}

// What a token's weights add up to, where that does not depend on the token.
std::optional<double> weight_sum(const moe::MoeConfig& moe) {
  const moe::RouterConfig& router = moe.router;
  const bool over_picks = !router.score_before_topk && router.score == moe::Score::kSoftmax;
  const bool sliced = moe.granularity > 1;  // then all slices of a copy must be chosen together
  if (router.type == "lory") return 1;
  if (router.type == "hash" && !sliced) return router.routed_scaling_factor;
  if (router.type != "topk" || !(router.norm_topk_prob || over_picks)) return std::nullopt;
  if (router.second == "random" || (router.top_p && sliced)) return std::nullopt;
  return router.routed_scaling_factor;
}

bool is_router(const std::string& name) { return name.find("moe.router.") != std::string::npos; }

class Planner {
 public:
  Planner(const RunConfig& config, const std::vector<Resumed>& runs)
      : runs_(runs), moe_(config.moe), shape_(model::model_shape(config.model, config.moe)) {}

  Plan plan(const StateDict& state) const {
    Plan plan;
    for (const auto& entry : state) {
      if (entry.role == kParamRole) add_weight(entry, plan);
      if (entry.role == kBufferRole) add_buffer(entry, plan);
    }
    return plan;
  }

 private:
  const checkpoint::TensorRecord* saved(const Resumed& run, const std::string& name, const char* role) const {
    return checkpoint::find_tensor(run.manifest, name, role);
  }

  void add_weight(const StateEntry& entry, Plan& plan) const {
    const int runs = static_cast<int>(runs_.size());
    const bool known = saved(runs_[0], entry.name, kParamRole) != nullptr;
    if (known && runs > 1 && entry.name.find(".moe.") != std::string::npos)
      return plan.missing.push_back(
          fmt::format("{} would be a mean of experts: several runs must be dense", entry.name));
    if (known) return add({&entry, {entry.name, entry.global_shape, {entry.offset, entry.shape}, 0, runs}}, plan);
    if (is_router(entry.name)) return plan.drawn.push_back(entry.name);
    const auto layer = layer_of(entry.name);
    const auto origin = layer ? expert_origin(entry, upcycling(*layer)) : std::nullopt;
    if (!origin) return plan.missing.push_back(fmt::format("{} is in none of them", entry.name));
    if (shape_.layers.at(*layer).ffn_width > 0)
      return plan.missing.push_back(fmt::format("{} would repeat the dense FFN beside it", entry.name));
    plan.upcycled.insert(*layer);
    add({&entry, *origin}, plan);
  }

  // State of a method that the run had, too. The mean of several would mean nothing.
  void add_buffer(const StateEntry& entry, Plan& plan) const {
    const auto* tensor = saved(runs_[0], entry.name, kBufferRole);
    if (runs_.size() > 1 || tensor == nullptr || tensor->shape != entry.global_shape) return;
    plan.parts.push_back({&entry, {entry.name, entry.global_shape, {entry.offset, entry.shape}}});
  }

  // Refuses a tensor that one of its runs has not, or has in another shape.
  void add(Planned part, Plan& plan) const {
    const Origin& origin = part.origin;
    for (int r = origin.first; r < origin.first + origin.runs; ++r) {
      const auto* tensor = saved(runs_[r], origin.name, kParamRole);
      if (tensor != nullptr && tensor->shape == origin.shape) continue;
      const std::string found = tensor ? fmt::format("is {} there", tensor->shape) : "is not there";
      plan.missing.push_back(
          fmt::format("{} {} ({}) and {} for this run", origin.name, found, runs_[r].folder.string(), origin.shape));
    }
    plan.parts.push_back(std::move(part));
  }

  Upcycling upcycling(int64_t layer) const {
    return {.copies = shape_.layers.at(layer).num_experts / moe_.granularity,
            .granularity = moe_.granularity,
            .runs = static_cast<int>(runs_.size()),
            .weight_sum = weight_sum(moe_).value_or(1)};
  }

  const std::vector<Resumed>& runs_;
  const moe::MoeConfig& moe_;
  model::ModelShape shape_;
};

// All that is wrong, on every rank.
void require_fit(const Plan& plan, const comm::Group& world) {
  checkpoint::agree(world, [&] {
    if (plan.missing.empty()) return;
    std::string list;
    for (size_t i = 0; i < std::min<size_t>(plan.missing.size(), 5); ++i) list += "\n  " + plan.missing[i];
    if (plan.missing.size() > 5) list += fmt::format("\n  and {} more", plan.missing.size() - 5);
    throw ConfigError(
        "model.init_from: these runs do not have what this one is made of:{}\n  Sizes of the model must be theirs, an "
        "expert before granularity as wide as their FFN, and shared experts can only come from a run that has them.",
        list);
  });
}

// Weights that nobody takes would be a part of the function that is lost.
void require_used(const Plan& plan, const std::vector<Resumed>& runs, const comm::Group& world) {
  for (size_t r = 0; r < runs.size(); ++r) {
    const auto& tensors = runs[r].manifest.tensors;
    std::set<std::string> taken;
    for (const auto& [entry, origin] : plan.parts) taken.insert(origin.name);
    std::vector<int32_t> used;
    // Of several runs each gives the experts that are its own.
    for (const auto& tensor : tensors)
      used.push_back(tensor.key.role != kParamRole || taken.contains(tensor.key.name) || is_router(tensor.key.name));
    world.all_reduce(std::span<int32_t>(used), comm::Reduce::kMax);
    const auto unused = std::find(used.begin(), used.end(), 0);
    if (unused == used.end()) continue;
    throw ConfigError(
        "model.init_from: {} tensors of {} have no place in this run, the first is {}\n"
        "  Layers, biases, experts and shared experts of this run must be those of the earlier one.",
        std::count(used.begin(), used.end(), 0), runs[r].folder.string(), tensors[unused - used.begin()].key.name);
  }
}

// As YAML writes it.
std::string text_of(const nlohmann::json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// What shapes do not tell.
void require_same_function(const RunConfig& config, const std::vector<Resumed>& runs) {
  auto now = config::to_json(config.model);
  const auto mup = [](auto& model) {
    const bool used = model.value("init", std::string()) == "mup";
    if (!used) model.erase("mup");
    model["init"] = used ? "mup" : "normal, scaled or fan_in";  // which only draw weights
  };
  mup(now);
  for (const auto& run : runs) {
    if (!run.manifest.config.model.contains("model")) continue;
    auto saved = run.manifest.config.model.at("model");
    mup(saved);
    for (const char* key : {"num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "norm_eps",
                            "norm_placement", "init", "mup"}) {
      if (!saved.contains(key) || saved.at(key) == now.at(key)) continue;
      throw ConfigError("model.init_from: model.{} is {} in {} and {} here\n  Set it to the earlier run's value.", key,
                        text_of(saved.at(key)), run.folder.string(), text_of(now.at(key)));
    }
  }
}

// Experts are counted before granularity, so an uneven number of runs would favour some.
void require_even(const RunConfig& config, size_t runs) {
  const auto shape = model::model_shape(config.model, config.moe);
  for (size_t layer = 0; layer < shape.layers.size(); ++layer) {
    const int64_t copies = shape.layers[layer].num_experts / config.moe.granularity;
    if (copies % static_cast<int64_t>(runs) != 0)
      throw ConfigError(
          "model.init_from: {} runs cannot give layer {} equally many of its {} experts\n  Make moe.num_experts a "
          "multiple of {}.",
          runs, layer, copies, runs);
  }
}

std::span<float> floats(const StateEntry& entry) {
  return {reinterpret_cast<float*>(entry.data.data()), entry.data.size() / sizeof(float)};
}

// What run `r` gives: read in place by the first of a tensor's runs, added by the others.
void read_run(const Plan& plan, const std::vector<Resumed>& runs, int r, const comm::Group& world) {
  StateDict boxes;
  std::vector<std::pair<const StateEntry*, std::vector<std::byte>>> added;
  for (const auto& [entry, origin] : plan.parts) {
    if (r < origin.first || r >= origin.first + origin.runs) continue;
    StateEntry box = *entry;
    box.name = origin.name;
    box.global_shape = origin.shape;
    box.offset = origin.box.offset;
    box.shape = origin.box.shape;
    if (r > origin.first) box.data = added.emplace_back(entry, std::vector<std::byte>(entry->data.size())).second;
    boxes.push_back(std::move(box));
  }
  checkpoint::read_boxes(world, runs[r].folder, runs[r].manifest, boxes);
  for (auto& [entry, bytes] : added) {
    const auto* term = reinterpret_cast<const float*>(bytes.data());
    for (float& sum : floats(*entry)) sum += *term++;
  }
}

void scale(const Plan& plan) {
  for (const auto& [entry, origin] : plan.parts) {
    const auto factor = static_cast<float>(origin.scale / origin.runs);
    if (factor == 1) continue;
    for (float& value : floats(*entry)) value *= factor;
  }
}

// The G slices of a copy are wanted alike, so that a token gets all of them (virtual groups of arXiv 2410.07524).
void group_routers(const RunConfig& config, const Plan& plan, const StateDict& state) {
  const int64_t slices = config.moe.granularity;
  const std::set<std::string> drawn(plan.drawn.begin(), plan.drawn.end());
  const auto layers = model::model_shape(config.model, config.moe).layers;
  for (const auto& entry : state) {
    if (entry.role != kParamRole || !drawn.contains(entry.name) || !entry.name.ends_with("moe.router.weight")) continue;
    // Rows of experts that stay at home come after the others.
    const int64_t experts = layers.at(layer_of(entry.name).value_or(*plan.upcycled.begin())).num_experts;
    const size_t row = entry.data.size() / static_cast<size_t>(entry.shape[0]);
    for (int64_t n = 0; n < std::min(experts, entry.shape[0]); ++n)
      if (n % slices != 0) std::memcpy(&entry.data[n * row], &entry.data[(n - n % slices) * row], row);
  }
}

void report(const RunConfig& config, const Plan& plan, const std::vector<Resumed>& runs, Log& log) {
  std::vector<std::string> from;
  for (const auto& run : runs) from.push_back(fmt::format("{} (step {})", run.folder.string(), run.manifest.step));
  log.info("weights begin as those of {}{}", fmt::join(from, ", "),
           runs.size() > 1 ? ": their mean, and FFNs as experts" : "");
  if (plan.upcycled.empty()) return;
  log.info("experts of layers {} begin as dense FFNs; routers as drawn", fmt::join(plan.upcycled, ", "));
  if (runs.size() == 1 && !weight_sum(config.moe))
    log.warn(
        "model.init_from: the weights of a token do not add up to a constant, so this run does not begin as the dense "
        "one; moe.router.type: topk with norm_topk_prob: true does");
}

}  // namespace

checkpoint::Resumed open_earlier_run(const std::string& where, const comm::Group& world, Log& log) {
  checkpoint::ResumeRequest request;
  request.check_config = false;
  request.load.partial = true;
  return checkpoint::load_newest(world, where, request, {}, log);
}

void take_initial_weights(const RunConfig& config, const comm::Group& world, const StateDict& state, Log& log) {
  const auto runs = open_runs(config, world, log);
  const Plan plan = Planner(config, runs).plan(state);
  require_same_function(config, runs);
  require_fit(plan, world);
  require_used(plan, runs, world);
  if (!plan.upcycled.empty()) require_even(config, runs.size());
  for (size_t r = 0; r < runs.size(); ++r) read_run(plan, runs, static_cast<int>(r), world);
  scale(plan);
  if (!plan.upcycled.empty()) group_routers(config, plan, state);
  report(config, plan, runs, log);
}

}  // namespace conclave::train
