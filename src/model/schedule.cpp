// SPDX-License-Identifier: Apache-2.0
#include "model/schedule.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "model/greedy_order.h"

namespace conclave::model {
namespace {

using Stages = GreedyOrder::Stages;
using Needs = GreedyOrder::Needs;

// The number of the stage's block; stages before and after the blocks have their neighbour's.
std::vector<int> block_numbers(const Stages& stages) {
  std::vector<int> blocks;
  for (const auto& stage : stages) {
    const std::string& name = stage->name();
    const bool inside = name.starts_with("layers.");
    blocks.push_back(inside ? std::stoi(name.substr(sizeof "layers." - 1)) : blocks.empty() ? 0 : blocks.back());
  }
  return blocks;
}

bool shares(const std::vector<nn::Slot>& a, const std::vector<nn::Slot>& b) {
  return std::any_of(a.begin(), a.end(), [&](nn::Slot slot) { return std::find(b.begin(), b.end(), slot) != b.end(); });
}

// needs[s]: the stages that s takes something from.
Needs producers(const Stages& stages) {
  Needs needs(stages.size());
  for (size_t s = 0; s < stages.size(); ++s)
    for (size_t p = 0; p < s; ++p)
      if (shares(stages[s]->inputs(), stages[p]->outputs())) needs[s].push_back(p);
  return needs;
}

Needs turned(const Needs& needs) {
  Needs readers(needs.size());
  for (size_t s = 0; s < needs.size(); ++s)
    for (const size_t p : needs[s]) readers[p].push_back(s);
  return readers;
}

class ForwardOrder : public GreedyOrder {
 public:
  ForwardOrder(const Stages& stages, const Needs& needs, std::vector<Operation>& out)
      : GreedyOrder(stages, all(stages.size()), needs), out_(out) {}

 private:
  static std::vector<size_t> all(size_t count) {
    std::vector<size_t> order(count);
    for (size_t s = 0; s < count; ++s) order[s] = s;
    return order;
  }
  bool compute(size_t stage) override {
    out_.push_back({Verb::kForward, stage});
    return true;
  }
  void start(size_t stage) override { out_.push_back({Verb::kStartForward, stage}); }
  void finish(size_t stage) override { out_.push_back({Verb::kFinishForward, stage}); }
  // What a stage frees, those before it may still read.
  void completed() override {
    for (; freed_ < stages().size() && complete(freed_); ++freed_) out_.push_back({Verb::kFree, freed_});
  }

  std::vector<Operation>& out_;
  size_t freed_ = 0;
};

// Weight gradients that wait for a window.
class WaitingWeights {
 public:
  explicit WaitingWeights(std::vector<Operation>& out) : out_(out) {}
  void add(size_t stage) { stages_.push_back(stage); }
  void flush() {
    for (const size_t stage : stages_) out_.push_back({Verb::kWeights, stage});
    stages_.clear();
  }

 private:
  std::vector<Operation>& out_;
  std::vector<size_t> stages_;
};

// Stages that run again, inside of backward.
class AgainOrder : public GreedyOrder {
 public:
  AgainOrder(const Stages& stages, const std::vector<size_t>& again, const Needs& needs, std::vector<Operation>& out,
             WaitingWeights& weights)
      : GreedyOrder(stages, again, needs), out_(out), weights_(weights) {}

 private:
  bool compute(size_t stage) override {
    out_.push_back({Verb::kAgain, stage});
    return true;
  }
  void start(size_t stage) override { out_.push_back({Verb::kStartAgain, stage}); }
  void finish(size_t stage) override { out_.push_back({Verb::kFinishAgain, stage}); }
  void window() override { weights_.flush(); }

  std::vector<Operation>& out_;
  WaitingWeights& weights_;
};

class BackwardOrder : public GreedyOrder {
 public:
  struct Wiring {
    const Needs& producers;
    const Needs& readers;
  };
  BackwardOrder(const Stages& stages, const std::vector<StageMemory>& memory, const Wiring& wiring,
                std::vector<Operation>& out)
      : GreedyOrder(stages, reversed(stages.size()), wiring.readers),
        memory_(memory),
        producers_(wiring.producers),
        out_(out),
        weights_(out),
        blocks_(block_numbers(stages)) {}

  void run_all() {
    run();
    weights_.flush();
  }

 private:
  static std::vector<size_t> reversed(size_t count) {
    std::vector<size_t> order;
    for (size_t s = count; s-- > 0;) order.push_back(s);
    return order;
  }
  bool compute(size_t stage) override {
    run_again(stage);
    const bool aside = before_its_turn(stage);
    out_.push_back({aside ? Verb::kBackwardAside : Verb::kBackward, stage});
    if (aside) asides_.push_back(stage);
    weights_wait(stage);
    return !aside;
  }
  void start(size_t stage) override {
    run_again(stage);
    out_.push_back({Verb::kStartBackward, stage});
  }
  void finish(size_t stage) override {
    check(!before_its_turn(stage), "an exchange adds its gradient in its turn");
    out_.push_back({Verb::kFinishBackward, stage});
    weights_wait(stage);
  }
  void window() override { weights_.flush(); }
  bool alone(size_t stage) const override { return !memory_[stage].again.empty(); }

  void run_again(size_t stage) {
    if (!memory_[stage].again.empty()) AgainOrder(stages(), memory_[stage].again, producers_, out_, weights_).run();
  }
  // Whether a later stage has yet to add to the gradient of the same slot.
  bool before_its_turn(size_t stage) const {
    for (size_t later = stage + 1; later < stages().size(); ++later)
      if (!complete(later) && shares(stages()[later]->inputs(), stages()[stage]->inputs())) return true;
    return false;
  }
  void completed() override {
    const auto turn = std::find_if(asides_.begin(), asides_.end(), [&](size_t s) { return !before_its_turn(s); });
    if (turn == asides_.end()) return;
    const size_t stage = *turn;
    asides_.erase(turn);
    out_.push_back({Verb::kAddAside, stage});
    set_complete(stage);
  }
  // A window of this block or the one below is worth waiting for; further off, memory would wait too long.
  void weights_wait(size_t stage) {
    weights_.add(stage);
    const size_t* next = next_exchange();
    const bool near = next != nullptr && blocks_[stage] - blocks_[*next] <= 1;
    if (!near && nothing_under_way()) weights_.flush();
  }

  const std::vector<StageMemory>& memory_;
  const Needs& producers_;
  std::vector<Operation>& out_;
  WaitingWeights weights_;
  std::vector<int> blocks_;
  std::vector<size_t> asides_;
};

}  // namespace

bool finishes_exchange(Verb verb) {
  return verb == Verb::kFinishForward || verb == Verb::kFinishAgain || verb == Verb::kFinishBackward;
}

Schedule plan_schedule(const Stages& stages, const std::vector<StageMemory>& memory) {
  const auto needs = producers(stages);
  const auto readers = turned(needs);
  Schedule schedule;
  ForwardOrder(stages, needs, schedule.forward).run();
  BackwardOrder(stages, memory, {needs, readers}, schedule.backward).run_all();
  return schedule;
}

}  // namespace conclave::model
