// SPDX-License-Identifier: Apache-2.0
#include "model/greedy_order.h"

#include <algorithm>

#include "core/error.h"

namespace conclave::model {
namespace {

bool is_exchange(const nn::Stage& stage) { return dynamic_cast<const nn::ExchangeStage*>(&stage) != nullptr; }

}  // namespace

GreedyOrder::GreedyOrder(const Stages& stages, std::vector<size_t> order, const Needs& needs)
    : stages_(stages), order_(std::move(order)), needs_(needs), states_(stages.size(), State::kAbsent) {
  for (const size_t s : order_) states_[s] = State::kWaiting;
}

void GreedyOrder::run() {
  while (std::any_of(order_.begin(), order_.end(), [&](size_t s) { return !complete(s); })) {
    if (issue_one(before_next_exchange())) continue;
    window();
    if (issue_one(computations())) continue;
    check(!under_way_.empty(), "stages form no circle");
    finish_oldest();
  }
}

bool GreedyOrder::complete(size_t stage) const {
  return states_[stage] == State::kComplete || states_[stage] == State::kAbsent;
}

void GreedyOrder::set_complete(size_t stage) {
  states_[stage] = State::kComplete;
  completed();
}

const size_t* GreedyOrder::next_exchange() const {
  for (const size_t& s : order_)
    if (states_[s] == State::kWaiting && is_exchange(*stages_[s])) return &s;
  return nullptr;
}

// What the next exchange waits for, and itself; everything when there is none.
std::vector<bool> GreedyOrder::before_next_exchange() const {
  const size_t* next = next_exchange();
  std::vector<bool> chosen(stages_.size(), next == nullptr);
  if (next == nullptr) return chosen;
  std::vector<size_t> todo{*next};
  while (!todo.empty()) {
    const size_t s = todo.back();
    todo.pop_back();
    if (chosen[s]) continue;
    chosen[s] = true;
    todo.insert(todo.end(), needs_[s].begin(), needs_[s].end());
  }
  return chosen;
}

std::vector<bool> GreedyOrder::computations() const {
  std::vector<bool> chosen;
  for (const auto& stage : stages_) chosen.push_back(!is_exchange(*stage));
  return chosen;
}

bool GreedyOrder::ready(size_t stage) const {
  return states_[stage] == State::kWaiting &&
         std::all_of(needs_[stage].begin(), needs_[stage].end(), [&](size_t p) { return complete(p); });
}

bool GreedyOrder::issue_one(const std::vector<bool>& chosen) {
  for (const size_t s : order_) {
    if (!chosen[s] || !ready(s)) continue;
    while (alone(s) && !under_way_.empty()) finish_oldest();
    if (is_exchange(*stages_[s])) {
      start(s);
      states_[s] = State::kUnderWay;
      under_way_.push_back(s);
    } else if (compute(s)) {
      set_complete(s);
    } else {
      states_[s] = State::kAside;
    }
    return true;
  }
  return false;
}

// Exchanges are finished in the order they were started.
void GreedyOrder::finish_oldest() {
  const size_t s = under_way_.front();
  under_way_.pop_front();
  finish(s);
  set_complete(s);
}

}  // namespace conclave::model
