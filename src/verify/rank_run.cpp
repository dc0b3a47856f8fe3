// SPDX-License-Identifier: Apache-2.0
#include "verify/rank_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "checkpoint/box.h"
#include "train/replica_check.h"
#include "verify/batches.h"

namespace conclave::verify {
namespace {

std::map<std::string, std::vector<std::byte>> copies(const parallel::StateDict& entries) {
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& entry : entries) {
    check(entry.shape == entry.global_shape, "one rank holds whole tensors");
    all[key_of(entry)] = {entry.data.begin(), entry.data.end()};
  }
  return all;
}

// Nothing crosses between hosts where there is only one, so ranks are taken to be on two.
std::unique_ptr<moe::Dispatcher> make_over_two_hosts(const moe::DispatchConfig& config, const comm::Group& ep) {
  const int half = ep.size() / 2;
  std::vector<int> hosts(ep.size(), 0);
  std::fill(hosts.begin() + half, hosts.end(), half);
  return moe::Dispatcher::make_on(hosts, config, ep);
}

}  // namespace

std::string key_of(const parallel::StateEntry& entry) { return entry.name + " " + entry.role; }

std::vector<std::byte> part_of(const std::vector<std::byte>& whole, const parallel::StateEntry& entry) {
  if (entry.shape == entry.global_shape) return whole;
  const checkpoint::Box all{checkpoint::Shape(entry.global_shape.size(), 0), entry.global_shape};
  const checkpoint::Box box{entry.offset, entry.shape};
  std::vector<std::byte> part(entry.data.size());
  checkpoint::copy_part(box, {all, whole}, {box, part}, static_cast<int64_t>(comm::bytes_of(entry.dtype)));
  return part;
}

RankRun::RankRun(const comm::Group& world, const RankSetup& setup)
    : config_(setup.config),
      mesh_(world, config_.parallel),
      damage_({setup.fault, config_.parallel.zero > 0}, mesh_, setup.truth != nullptr ? *setup.truth : none_),
      model_(model_config(setup), mesh_),
      step_(config_, mesh_, model_, failpoints_, setup.fault == Fault::kNone ? nullptr : &damage_) {}

model::TransformerConfig RankRun::model_config(const RankSetup& setup) {
  auto config = train::transformer_config(config_);
  config.choices = setup.choices;
  if (config.moe.dispatch.payload != moe::DispatchPayload::kSame) config.make_dispatcher = make_over_two_hosts;
  damage_.enter(config);
  return config;
}

train::StepReport RankRun::step(int64_t number) {
  const auto share = mesh_.micro_batches(config_.train.global_batch_size / config_.train.micro_batch_size);
  std::vector<Batch> batches;
  for (int64_t m = share.first; m < share.first + share.count; ++m) batches.push_back(micro_batch(config_, number, m));
  damage_.before_step(model_);
  auto report = step_.run(number, batches);
  step_.await_weights();
  damage_.after_step(model_, batches);
  return report;
}

void RankRun::load(const StepTrace& before, int64_t updates) {
  for (const auto& entry : state()) {
    const auto bytes = part_of(before.state.at(key_of(entry)), entry);
    std::copy(bytes.begin(), bytes.end(), entry.data.begin());
  }
  step_.set_updates(updates);
}

std::string RankRun::unequal_copies() {
  step_.await_weights();
  return train::unequal_copies(model_);
}

parallel::StateDict RankRun::gradient() { return train::gradient_state(step_, model_, mesh_); }
parallel::StateDict RankRun::state() { return train::full_state(model_, step_, mesh_); }

Reference make_reference(const train::RunConfig& config, int64_t steps) {
  Reference reference;
  RankRun run(comm::Group(), {.config = config, .choices = &reference.choices});
  for (int64_t i = 0; i < steps; ++i) {
    StepTrace trace;
    trace.report = run.step(i);
    if (trace.report.skipped)
      throw NumericError("step {} of the model does not even work on one rank: {}", i + 1, *trace.report.skipped);
    const auto gradient = run.gradient();
    double squares = 0;
    for (const auto& entry : gradient)
      for (const float g : std::span(reinterpret_cast<const float*>(entry.data.data()), entry.data.size() / 4))
        squares += static_cast<double>(g) * g;
    trace.gradient_norm = std::sqrt(squares);
    trace.gradient = copies(gradient);
    trace.state = copies(run.state());
    reference.steps.push_back(std::move(trace));
  }
  return reference;
}

}  // namespace conclave::verify
