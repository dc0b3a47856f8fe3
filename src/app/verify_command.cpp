// SPDX-License-Identifier: Apache-2.0
#include "app/verify_command.h"

#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/config_options.h"
#include "app/rank_resources.h"
#include "comm/thread_ranks.h"
#include "comm/watchdog.h"
#include "comm/world.h"
#include "config/fields.h"
#include "model/thread_check.h"
#include "verify/costs.h"
#include "verify/report.h"

namespace conclave::app {
namespace {

struct VerifyCommand {
  ConfigOptions config;
  verify::VerifyOptions options;
  bool ranks_given = false;
  std::string fault;
  bool no_replay = false;
  std::string json;
};

// The file's own layout does not matter, only its model, batch and optimizer.
train::RunConfig model_of(const ConfigOptions& options) {
  ConfigOptions plain = options;
  using Kind = config::Override::Kind;
  plain.overrides.push_back({Kind::kUnset, "parallel"});
  plain.overrides.push_back({Kind::kSet, "moe.dispatch.type=auto"});
  return load_without_data(plain, 1);
}

// Ranks of several hosts share no memory.
void leave_out_shared(const comm::Group& group, verify::LayoutPlan& plan) {
  const auto hosts = group.hosts();
  if (hosts == std::vector<int>(hosts.size(), 0)) return;
  const auto is_shared = [](const verify::Layout& layout) { return layout.dispatch == moe::DispatchType::kShared; };
  if (std::erase_if(plan.layouts, is_shared) > 0) plan.skipped.push_back({"shared", "the ranks are on several hosts"});
}

verify::RunRanks rank_runner(const comm::Group& world) {
  if (world.size() == 1) return comm::run_thread_ranks;
  return [&world](int ranks, const std::function<void(const comm::Group&)>& body) {
    const bool mine = world.rank() < ranks;
    const comm::Group group = world.split(mine ? 0 : 1, world.rank());
    if (mine) body(group);
    world.barrier();
  };
}

void write_json(const std::string& path, const nlohmann::json& json) {
  std::ofstream out(path);
  out << json.dump(2) << "\n";
  out.flush();
  if (!out) throw IoError("cannot write {}: check the directory and the space left", path);
}

verify::VerifyOptions options_for(const comm::World& world, const VerifyCommand& command) {
  auto options = command.options;
  options.replay = !command.no_replay;
  options.fault = verify::fault_named(command.fault);
  if (world.size() > 1) {
    if (!command.ranks_given) options.ranks = world.size();
    if (options.ranks > world.size())
      throw UsageError("-n {}, but {} ranks run; leave it out, or start mpirun -n {}", options.ranks, world.size(),
                       options.ranks);
    options.threads = rank_threads(world.cores());
  } else {
    options.threads = rank_threads(std::max(1, world.cores() / static_cast<int>(options.ranks)));
  }
  return options;
}

void check_costs(const comm::World& world, const train::RunConfig& config, const verify::LayoutPlan& plan,
                 const verify::VerifyOptions& options) {
  const bool threads = world.size() == 1;
  const verify::HostShare host{.ranks = threads ? options.ranks : world.local_size(),
                               .references = threads ? 1 : world.local_size(),
                               .memory = verify::host_memory(),
                               .cores = process_cores()};
  for (const auto& warning : verify::cost_warnings(verify::costs_of(config, plan, options, host), host))
    if (world.rank() == 0) fmt::print(stderr, "warning: {}\n", warning);
}

// Why canonical cannot be had on some rank; empty where it can. Collective.
std::string canonical_obstacle(const comm::Group& group, const train::RunConfig& config, int threads) {
  const auto own = model::canonical_obstacle(model::model_shape(config.model, config.moe),
                                             config.train.micro_batch_size * config.data.seq_len, threads);
  for (const auto& obstacle : group.all_gather_text(own))
    if (!obstacle.empty()) return obstacle;
  return "";
}

int verify_in(comm::World& world, const VerifyCommand& command) {
  const auto options = options_for(world, command);
  const auto config = verify::with_divisible_batch(model_of(command.config), options.ranks);
  verify::require_possible(options.fault, config, options.ranks);
  const auto group = world.group(config.comm.backend);
  const auto obstacle = canonical_obstacle(group, config, options.threads);
  auto plan = verify::plan_layouts(config, options.ranks, obstacle);
  auto others = verify::other_batches(config, plan, options.ranks, obstacle);
  leave_out_shared(group, plan);
  for (auto& other : others) leave_out_shared(group, other.plan);
  check_costs(world, config, plan, options);
  if (world.size() > 1) world.advance_by(config.comm.progress);
  if (world.rank() == 0) {
    const std::string transport = world.size() == 1 ? "threads"
                                                    : fmt::format("{}, progress {}", group.transport_name(),
                                                                  config::enum_name(config.comm.progress));
    fmt::print("{}: {}", command.config.file, verify::heading(config, plan, options, transport));
    std::fflush(stdout);
  }
  // Between two beats lie all steps of a layout.
  comm::Watchdog watchdog(config.train.hang_timeout.seconds * static_cast<double>(options.steps + 1), world.rank(),
                          world.activity(), world.roll_call());
  int64_t layout = 0;
  const auto run_ranks = [&](int ranks, const auto& body) {
    watchdog.beat(++layout, "a layout of verify");
    rank_runner(group)(ranks, body);
  };
  std::vector<verify::Row> rows;
  const auto show = [&](const verify::Row& row) {
    fmt::print("{}", verify::row_text(row));
    std::fflush(stdout);
    rows.push_back(row);
  };
  verify::verify(config, plan, options, run_ranks, show);
  for (const auto& other : others) {
    if (world.rank() == 0) fmt::print("{}", verify::heading_of(other));
    verify::verify(other.config, other.plan, options, run_ranks, show);
  }
  std::vector<int32_t> broken{rows.empty() || verify::all_hold(rows) ? 0 : 1};
  group.broadcast(std::span<int32_t>(broken), 0);
  if (world.rank() == 0) {
    fmt::print("{}", verify::closing(rows, options));
    if (!command.json.empty()) write_json(command.json, verify::to_json(config, plan, options, rows));
  }
  return static_cast<int>(broken[0] == 0 ? ExitCode::kDone : ExitCode::kNumeric);
}

}  // namespace

void add_verify_command(CLI::App& app, std::function<int()>& run) {
  const auto command = std::make_shared<VerifyCommand>();
  auto* sub = app.add_subcommand("verify", "train the model under every layout and compare each with one rank");
  add_config_options(*sub, command->config);
  auto* ranks = sub->add_option("-n,--ranks", command->options.ranks,
                                "most ranks of a layout (default: 4 as threads; under mpirun its processes)");
  ranks->check(CLI::Range(1, 256));
  sub->add_option("--steps", command->options.steps, "optimizer steps of each layout (default: 3)")
      ->check(CLI::Range(1, 1000));
  sub->add_flag("--no-replay", command->no_replay,
                "do not take the reference's expert ids where sums may round differently; count what flips");
  sub->add_option("--plant", command->fault, "plant a mistake, which must be found")
      ->check(CLI::IsMember(verify::fault_names()));
  sub->add_option("--json", command->json, "write the results to this file as well");
  sub->footer(
      "Tokens are made up; no data is read. Exit code 0: every promise of docs/numerics.md holds; 81: one is broken.\n"
      "Example: all layouts of up to 4 ranks as threads, then the same with a planted mistake\n"
      "  conclave verify configs/tiny.yaml\n"
      "  conclave verify configs/tiny.yaml --plant expert-scale");
  sub->callback([command, ranks, &run] {
    run = [command, ranks] {
      command->ranks_given = ranks->count() > 0;
      keep_memory();
      return comm::run_world([&](comm::World& world) { return verify_in(world, *command); });
    };
  });
}

}  // namespace conclave::app
