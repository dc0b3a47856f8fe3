// SPDX-License-Identifier: Apache-2.0
// What the device path can do. It is taken for train.device: cuda, and on the CPU for train.precision: bf16.
#include <algorithm>

#include "config/fields.h"
#include "moe/balance_loss.h"
#include "train/config_rules.h"

namespace conclave::train {
namespace {

// bf16 rows of a grouped product begin at multiples of 16 bytes.
constexpr int64_t kRowElements = 8;

// The router's kernel keeps one token's scores in one block.
constexpr int64_t kMostExperts = 512;

int64_t largest(int64_t number) { return number; }
int64_t largest(const std::vector<int64_t>& numbers) { return *std::max_element(numbers.begin(), numbers.end()); }

using Obstacles = std::vector<DeviceObstacle>;

void find_methods(const RunConfig& config, Obstacles& found) {
  const moe::RouterConfig& router = config.moe.router;
  const moe::CapacityConfig& capacity = config.moe.capacity;
  const std::string dropless = "set null (dropless)";
  if (router.type != "topk") found.push_back({"moe.router.type", "routers of type " + router.type, "use topk"});
  if (config.moe.top_k.scheduled()) found.push_back({"moe.top_k", "a schedule of top_k", "use one number"});
  if (router.second != "always") found.push_back({"moe.router.second", "a random second expert", "use always"});
  if (router.noise != "none") found.push_back({"moe.router.noise", "noise in the choice", "use none"});
  if (router.top_p) found.push_back({"moe.router.top_p", "a varying number of experts", "set null and use top_k"});
  if (router.share != "layer") found.push_back({"moe.router.share", "one router for all layers", "use layer"});
  if (router.context) found.push_back({"moe.router.context", "a router with a context", "set false"});
  if (!moe::relative_widths(config.moe).empty())
    found.push_back({"moe.expert_hidden_size", "experts of different widths", "give one number"});
  if (router.recurrent) found.push_back({"moe.router.recurrent", "a router with a state", "set null"});
  if (config.moe.branch != moe::Branch::kSerial)
    found.push_back({"moe.branch", "a dense FFN beside the experts", "use serial"});
  if (config.moe.shared_merge != "add")
    found.push_back({"moe.shared_merge", "a mean with the shared expert", "use add"});
  if (config.moe.experts.dropout > 0) found.push_back({"moe.experts.dropout", "dropout in experts", "set 0"});
  if (config.moe.fallback) found.push_back({"moe.fallback", "a fallback expert", "set null"});
  if (router.frozen) found.push_back({"moe.router.frozen", "a router that does not learn", "set false"});
  if (router.jitter > 0) found.push_back({"moe.router.jitter", "jitter", "set 0"});
  if (capacity.factor) found.push_back({"moe.capacity.factor", "capacity limits", dropless});
  if (capacity.eval_factor) found.push_back({"moe.capacity.eval_factor", "capacity limits", dropless});
  for (size_t i = 0; i < config.moe.balance.losses.size(); ++i) {
    const auto type = config.moe.balance.losses[i].type;
    if (type == moe::LossType::kSwitch || type == moe::LossType::kZ) continue;
    found.push_back({fmt::format("moe.balance.losses[{}].type", i),
                     fmt::format("losses of type {}", config::enum_name(type)), "built so far: switch, z"});
  }
  const moe::DispatchConfig& dispatch = config.moe.dispatch;
  using enum moe::DispatchType;
  if (dispatch.type != kAuto && dispatch.type != kLocal && dispatch.type != kAllToAll)
    found.push_back(
        {"moe.dispatch.type", fmt::format("dispatch {}", config::enum_name(dispatch.type)), "use auto or alltoall"});
  if (dispatch.payload != moe::DispatchPayload::kSame)
    found.push_back({"moe.dispatch.payload", "rows that travel in another type", "use same"});
  if (dispatch.compression) found.push_back({"moe.dispatch.compression", "rows that travel as one", "set null"});
}

void find_layout(const RunConfig& config, Obstacles& found) {
  const parallel::ParallelConfig& mesh = config.parallel;
  for (const auto& [name, ranks] : {std::pair("tp", mesh.tp), std::pair("etp", mesh.etp)})
    if (ranks != 1)
      found.push_back({fmt::format("parallel.{}", name), "tensors that are spread over ranks",
                       fmt::format("set {}: 1 and spread experts (ep) or the batch (dp)", name)});
  if (mesh.reduction != parallel::Reduction::kFast)
    found.push_back({"parallel.reduction", "reduction: canonical, whose bits are those of the CPU path,", "use fast"});
  if (mesh.gradient_payload != parallel::GradientPayload::kSame)
    found.push_back({"parallel.gradient_payload", "gradients that travel in another type", "use same"});
  if (mesh.executor != parallel::ExecutorType::kSequential)
    found.push_back({"parallel.executor", "executors that hide exchanges", "use sequential"});
}

// What the CPU's references take and a GPU's kernels do not.
void find_sizes(const RunConfig& config, Obstacles& found) {
  if (config.train.device == "cpu") return;
  const bool experts = config.moe.enabled && count_moe_layers(config) > 0;
  const int64_t most = std::visit([](const auto& number) { return largest(number); }, config.moe.num_experts);
  if (experts && most * config.moe.granularity > kMostExperts)
    found.push_back({"moe.num_experts", fmt::format("{} experts in a layer", most * config.moe.granularity),
                     fmt::format("take at most {}", kMostExperts)});
  if (config.train.precision == "fp32") return;
  const model::ModelConfig& model = config.model;
  const auto odd = [&](const char* key, int64_t size) {
    if (size % kRowElements == 0) return;
    found.push_back({key, fmt::format("bf16 and a size of {}", size),
                     fmt::format("take a multiple of {}, or train.precision: fp32", kRowElements)});
  };
  odd("model.hidden_size", model.hidden_size);
  odd("model.head_dim", model.head_dim.value_or(model.hidden_size / std::max<int64_t>(1, model.num_attention_heads)));
  if (experts)
    odd("moe.expert_hidden_size",
        config.moe.expert_hidden_size.value_or(model.ffn_hidden_size.value_or(0)) / config.moe.granularity);
}

}  // namespace

bool takes_device_path(const RunConfig& config) {
  return config.train.device == "cuda" || config.train.precision == "bf16";
}

std::vector<DeviceObstacle> device_obstacles(const RunConfig& config) {
  Obstacles found;
  if (count_moe_layers(config) > 0 && config.moe.enabled) find_methods(config, found);
  find_layout(config, found);
  find_sizes(config, found);
  return found;
}

void check_device_path(const RunConfig& config, Rules& rules) {
  if (!takes_device_path(config)) return;
  const char* cause = config.train.device == "cuda" ? "train.device: cuda" : "train.precision: bf16";
  for (const auto& [key, what, remedy] : device_obstacles(config))
    rules.unbuilt(true, key, fmt::format("{} with {}; {}", what, cause, remedy));
  rules.warn_if(config.train.precision == "bf16" && config.train.device == "cpu", {"train.precision"},
                "bf16 on the CPU repeats what a GPU computes, to check it; it is slower than fp32");
}

}  // namespace conclave::train
