// SPDX-License-Identifier: Apache-2.0
#include "verify/verify.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

namespace conclave::verify {
namespace {

using Json = nlohmann::json;

// One layout under comparison, the same for all its ranks.
struct Comparison {
  const train::RunConfig& config;
  const Layout& layout;
  const VerifyOptions& options;
  const Reference& reference;

  Promise promise() const { return promise_of(layout, config.moe.dispatch.compression.has_value()); }
};

std::string to_text(const std::vector<Measure>& measures) {
  Json list = Json::array();
  for (const auto& m : measures)
    list.push_back({static_cast<int>(m.quantity), m.step, m.difference, m.of, m.same_bits, m.where});
  return list.dump();
}

// Of all ranks.
std::vector<Measure> gather(const comm::Group& world, const std::vector<Measure>& own) {
  std::vector<Measure> all;
  const auto texts = world.all_gather_text(to_text(own));
  for (size_t rank = 0; rank < texts.size(); ++rank)
    for (const auto& m : Json::parse(texts[rank]))
      all.push_back({static_cast<Quantity>(m.at(0).get<int>()), m.at(1).get<int64_t>(), m.at(2).get<double>(),
                     m.at(3).get<int64_t>(), m.at(4).get<bool>(), m.at(5).get<std::string>(), static_cast<int>(rank)});
  return all;
}

// What a replay saw since `flips` and `compared`.
Measure of_flips(const moe::ChoiceReplay& replay, int64_t flips, int64_t compared) {
  return {.quantity = Quantity::kFlips,
          .difference = static_cast<double>(replay.flips() - flips),
          .of = replay.compared() - compared,
          .same_bits = replay.flips() == flips};
}

Row make_row(const Comparison& c, const std::vector<Measure>& measures) {
  Row row{.layout = c.layout, .promise = c.promise()};
  double flips = 0;
  for (const auto& m : measures)
    if (m.quantity == Quantity::kFlips) flips += m.difference;
  row.judged = row.promise == Promise::kBitwise || c.options.replay || flips == 0;
  // What is not finite is wrong whichever experts were chosen.
  const Promise promise = row.judged ? row.promise : Promise::kMeasured;
  for (const auto& m : measures) {
    auto known = std::find_if(row.largest.begin(), row.largest.end(),
                              [&](const Measure& other) { return other.quantity == m.quantity; });
    if (known == row.largest.end()) {
      row.largest.push_back(m);
    } else if (std::tuple(!m.same_bits, m.difference) > std::tuple(!known->same_bits, known->difference)) {
      *known = m;
    }
    const auto when = [](const Measure& measure) { return std::tuple(measure.step, measure.quantity); };
    if (breaks(m, promise) && (!row.first || when(m) < when(*row.first))) row.first = m;
  }
  std::sort(row.largest.begin(), row.largest.end(),
            [](const Measure& a, const Measure& b) { return a.quantity < b.quantity; });
  for (auto& m : row.largest)
    if (m.quantity == Quantity::kFlips) m.difference = flips;  // those of all ranks and steps
  return row;
}

// The body of each rank; the result is whole on every rank.
Row compare_on(const comm::Group& world, const Comparison& c) {
  at::set_num_threads(c.options.threads);
  const Promise promise = c.promise();
  const bool close = promise != Promise::kBitwise;
  moe::ChoiceReplay replay(c.reference.choices, close && c.options.replay);
  RankRun run(world, {.config = with_layout(c.config, c.layout),
                      .choices = &replay,
                      .fault = c.options.fault,
                      .truth = &c.reference.choices});
  std::vector<Measure> measures;
  for (int64_t step = 0; step < c.options.steps; ++step) {
    // What is close for one step need not be after several: AdamW makes full steps of rounding.
    if (close && step > 0) run.load(c.reference.steps[step - 1], step);
    const int64_t flips = replay.flips(), compared = replay.compared();
    const auto report = run.step(step);
    auto of_step = compare_step(run, report, c.reference.steps[step], promise);
    if (!report.layers.empty()) of_step.push_back(of_flips(replay, flips, compared));
    for (auto& measure : of_step) {
      measure.step = step;
      measures.push_back(std::move(measure));
    }
  }
  return make_row(c, gather(world, measures));
}

}  // namespace

const Measure* Row::find(Quantity quantity) const {
  for (const auto& measure : largest)
    if (measure.quantity == quantity) return &measure;
  return nullptr;
}

void verify(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
            const RunRanks& run_ranks, const std::function<void(const Row&)>& done) {
  at::set_num_threads(options.threads);
  const Reference reference = make_reference(with_layout(config, plan.reference), options.steps);
  for (const Layout& layout : plan.layouts) {
    const Comparison comparison{config, layout, options, reference};
    std::optional<Row> row;
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      auto mine = compare_on(world, comparison);
      if (world.rank() == 0) row = std::move(mine);
    });
    if (row) done(*row);
  }
}

}  // namespace conclave::verify
