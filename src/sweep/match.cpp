// SPDX-License-Identifier: Apache-2.0
#include "sweep/match.h"

#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "config/scalars.h"
#include "train/run_result.h"

namespace conclave::sweep {
namespace {

using train::RunConfig;

constexpr int64_t kMostSteps = 1'000'000'000;
constexpr int64_t kMostWidths = 1 << 16;
constexpr int64_t kRowQuantum = 16;      // widths that every layout and reduction takes
constexpr double kWidthSlack = 1.0 / 8;  // of Solve::kBoth

double deviation(double value, double target) { return std::abs(value / target - 1); }

// Two neighbouring arguments of a rising function, the target between their values where it has one.
struct Bracket {
  int64_t low = 1, high = 1;
  double low_value = 0, high_value = 0;

  int64_t nearest(double target) const { return target - low_value <= high_value - target ? low : high; }
  double nearest_value(double target) const { return nearest(target) == low ? low_value : high_value; }
};

// Looks at 1 ... most.
Bracket bracket(const std::function<double(int64_t)>& rising, double target, int64_t most) {
  Bracket found{1, most, rising(1), rising(most)};
  if (found.low_value >= target) return {1, 1, found.low_value, found.low_value};
  if (found.high_value <= target) return {most, most, found.high_value, found.high_value};
  while (found.high - found.low > 1) {
    const int64_t middle = found.low + (found.high - found.low) / 2;
    const double value = rising(middle);
    (value < target ? found.low : found.high) = middle;
    (value < target ? found.low_value : found.high_value) = value;
  }
  return found;
}

std::string signed_percent(double value, double target) { return fmt::format("{:+.3g}%", 100 * (value / target - 1)); }

std::string nearest_two(const Bracket& found, double target, const std::string& unit, int64_t scale) {
  const auto one = [&](int64_t at, double value) {
    return fmt::format("{} {} ({:.6g}, {})", at * scale, unit, value, signed_percent(value, target));
  };
  std::string text = one(found.low, found.low_value);
  if (found.high != found.low) text += " and " + one(found.high, found.high_value);
  return text;
}

class Solver {
 public:
  Solver(const Targets& targets, const RunConfig& config, bool shared_follows)
      : targets_(targets), config_(config), shared_follows_(shared_follows) {
    // Narrow experts, and those spread over ranks, still come in multiples of 16.
    quantum_ = kRowQuantum * config.moe.granularity * config.parallel.etp;
  }

  Solution run() {
    if (targets_.active_params) meet_active(*targets_.active_params);
    if (!solution_.key.empty()) return solution_;
    if (targets_.tokens) meet_tokens(*targets_.tokens);
    if (targets_.flops) meet_flops(*targets_.flops);
    return solution_;
  }

 private:
  void set_width(RunConfig& config, int64_t width) const {
    config.moe.expert_hidden_size = width;
    if (shared_follows_) config.moe.shared_hidden_size.reset();
  }
  double flops_at(int64_t steps) const {
    RunConfig config = config_;
    config.train.steps = steps;
    return train::planned_flops(config, targets_.counter);
  }
  double flops_of_width(int64_t width) const {
    RunConfig config = config_;
    set_width(config, width);
    return train::planned_flops(config, targets_.counter);
  }
  double active_of_width(int64_t width) const {
    RunConfig config = config_;
    set_width(config, width);
    return static_cast<double>(
        model::count_parameters(model::model_shape(config.model, config.moe), targets_.counter).active());
  }

  bool near(double value, double target) const { return deviation(value, target) <= targets_.tolerance; }

  void refuse(const std::string& key, double target, const std::string& nearest, const std::string& advice) {
    solution_.key = key;
    solution_.problem = fmt::format("{:.6g} cannot be met within {:.3g}%; the nearest are {}; {}", target,
                                    100 * targets_.tolerance, nearest, advice);
  }

  bool one_width() const { return config_.moe.expert_hidden_size->each() == nullptr; }

  // By width: the experts' width before granularity.
  void meet_by_width(const std::string& key, double target, double (Solver::*value_of)(int64_t) const) {
    if (!one_width()) {
      solution_.key = key;
      solution_.problem =
          "would be met by moe.expert_hidden_size, which gives each expert a width of its own; give one number, or "
          "match by steps";
      return;
    }
    const auto found = bracket([&](int64_t n) { return (this->*value_of)(n * quantum_); }, target, kMostWidths);
    if (near(found.nearest_value(target), target)) {
      solution_.width = found.nearest(target) * quantum_;
      set_width(config_, *solution_.width);
      return;
    }
    const bool flat = (this->*value_of)(quantum_) == (this->*value_of)(kMostWidths * quantum_);
    refuse(key, target, nearest_two(found, target, "of moe.expert_hidden_size", quantum_),
           flat ? "the model has no layer whose width it is" : "a larger match.tolerance takes them");
  }

  void meet_active(double target) { meet_by_width("match.active_params", target, &Solver::active_of_width); }

  void meet_steps(const std::string& key, double target, const std::function<double(int64_t)>& of_steps) {
    const auto found = bracket(of_steps, target, kMostSteps);
    if (near(found.nearest_value(target), target)) {
      solution_.steps = found.nearest(target);
      return;
    }
    const bool widths = key == "match.flops" && targets_.solve == Solve::kSteps && !targets_.active_params;
    refuse(key, target, nearest_two(found, target, "steps", 1),
           widths ? "a larger match.tolerance takes them, match.solve: both also looks at neighbouring widths"
                  : "a larger match.tolerance takes them");
  }

  void meet_tokens(double target) {
    const auto per_step = static_cast<double>(config_.train.global_batch_size * config_.data.seq_len);
    meet_steps("match.tokens", target, [&](int64_t steps) { return per_step * static_cast<double>(steps); });
  }

  void meet_flops(double target) {
    if (targets_.solve == Solve::kWidth && !targets_.active_params) {
      return meet_by_width("match.flops", target, &Solver::flops_of_width);
    }
    const auto of_steps = [&](int64_t steps) { return flops_at(steps); };
    meet_steps("match.flops", target, of_steps);
    if (solution_.key.empty() || targets_.solve != Solve::kBoth || targets_.active_params || !one_width()) return;
    const Solution by_steps = solution_;
    const int64_t written = *config_.moe.expert_hidden_size;
    for (int64_t away = 1; static_cast<double>(away * quantum_) <= kWidthSlack * static_cast<double>(written); ++away) {
      for (const int64_t width : {written + away * quantum_, written - away * quantum_}) {
        solution_ = {};
        set_width(config_, width);
        meet_steps("match.flops", target, of_steps);
        solution_.width = width;
        if (solution_.key.empty()) return;
      }
    }
    solution_ = by_steps;
    solution_.problem += fmt::format("; no width within an eighth of {} does either", written);
  }

  const Targets& targets_;
  RunConfig config_;
  bool shared_follows_;
  int64_t quantum_ = kRowQuantum;
  Solution solution_;
};

}  // namespace

Targets targets_of(const Sweep& sweep, const RunConfig& base, config::Problems& problems) {
  const MatchConfig& match = sweep.config.match;
  const auto read = [&](const std::optional<std::string>& text, const char* key,
                        double of_base) -> std::optional<double> {
    if (!text) return std::nullopt;
    if (*text == "base") return of_base;
    const auto parsed = config::parse_double(*text);
    const double* value = std::get_if<double>(&parsed);
    if (value != nullptr && *value > 0) return *value;
    problems.add(config::origin_of(sweep.document, key), key,
                 fmt::format("expected a number above 0 such as 1e18, or base; found '{}'", *text));
    return std::nullopt;
  };
  const auto shape = model::model_shape(base.model, base.moe);
  return {read(match.flops, "match.flops", train::planned_flops(base, match.counter)),
          read(match.tokens, "match.tokens", static_cast<double>(train::planned_tokens(base))),
          read(match.active_params, "match.active_params",
               static_cast<double>(model::count_parameters(shape, match.counter).active())),
          match.counter,
          match.solve,
          match.tolerance};
}

Solution solve(const Targets& targets, const RunConfig& config, bool shared_follows) {
  return Solver(targets, config, shared_follows).run();
}

}  // namespace conclave::sweep
