// SPDX-License-Identifier: Apache-2.0
#include "verify/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "config/fields.h"

namespace conclave::verify {
namespace {

using Json = nlohmann::json;

constexpr const char* kColumns =
    "  {:<28} {:<9} {:<17} {:<11} {:>7} {:>7} {:>8} {:>6} {:>5} {:>7} {:>7} {:>5}  {:<8} {}\n";

std::string cell(const Row& row, Quantity quantity) {
  const Measure* measure = row.find(quantity);
  if (measure == nullptr) return "-";
  if (quantity == Quantity::kFlips) return fmt::format("{:.0f}", measure->difference);
  if (measure->same_bits) return "=";
  if (quantity <= Quantity::kDrops) return fmt::format("{:.0f}", measure->difference);
  return measure->difference >= kNotFinite ? "nan" : fmt::format("{:.1e}", measure->difference);
}

bool measured(const Row& row) { return row.promise == Promise::kMeasured; }

const char* verdict_of(const Row& row) {
  if (row.first) return "BROKEN";
  return !row.judged ? "flipped" : measured(row) ? "measured" : "holds";
}

// Why rows are measured only.
std::vector<std::string> unpromised(const std::vector<Row>& rows) {
  const auto any = [&](bool rounds) {
    return std::any_of(rows.begin(), rows.end(), [&](const Row& row) {
      return measured(row) && rounds == (row.layout.payload != moe::DispatchPayload::kSame);
    });
  };
  std::vector<std::string> reasons;
  if (any(true)) reasons.emplace_back("payloads that round");
  if (any(false)) reasons.emplace_back("compressed rows over other sums");
  return reasons;
}

int64_t judged_of(const std::vector<Row>& rows) {
  return std::count_if(rows.begin(), rows.end(),
                       [](const Row& row) { return row.first || (row.judged && !measured(row)); });
}

const char* text_of(Promise promise) {
  return promise == Promise::kBitwise ? "bitwise" : promise == Promise::kClose ? "<= 1e-5" : "none";
}

// What is left out for one reason shares a line.
std::string skipped_lines(const std::vector<Skipped>& skipped) {
  constexpr size_t kNamed = 3;
  std::vector<std::pair<std::string, std::vector<std::string>>> reasons;
  for (const auto& one : skipped) {
    auto known = std::find_if(reasons.begin(), reasons.end(), [&](const auto& r) { return r.first == one.why; });
    if (known == reasons.end()) known = reasons.insert(reasons.end(), {one.why, {}});
    known->second.push_back(one.what);
  }
  std::string text;
  for (const auto& [why, what] : reasons) {
    const auto named = std::span(what).first(std::min(kNamed, what.size()));
    text += fmt::format("skipped: {}{}: {}\n", fmt::join(named, ", "),
                        what.size() > kNamed ? fmt::format(" and {} more", what.size() - kNamed) : "", why);
  }
  return text;
}

Json to_json(const Measure& measure) {
  return {{"quantity", name_of(measure.quantity)}, {"step", measure.step + 1}, {"difference", measure.difference},
          {"same_bits", measure.same_bits},        {"where", measure.where},   {"rank", measure.rank}};
}

Json to_json(const Row& row) {
  Json json{
      {"dp", row.layout.dp},
      {"tp", row.layout.tp},
      {"sequence_parallel", row.layout.sequence_parallel},
      {"ep", row.layout.ep},
      {"etp", row.layout.etp},
      {"zero", row.layout.zero},
      {"reduction", config::enum_name(row.layout.reduction)},
      {"dispatch", row.layout.dispatch == moe::DispatchType::kAuto ? "-" : config::enum_name(row.layout.dispatch)},
      {"payload", config::enum_name(row.layout.payload)},
      {"executor", config::enum_name(row.layout.executor)},
      {"promise", row.promise == Promise::kBitwise ? "bitwise"
                  : measured(row)                  ? "none"
                                                   : "close"},
      {"verdict", row.first ? "broken" : verdict_of(row)},
      {"first", row.first ? to_json(*row.first) : Json()}};
  for (const auto& measure : row.largest) json["largest"][name_of(measure.quantity)] = to_json(measure);
  return json;
}

}  // namespace

std::string heading(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
                    const std::string& transport) {
  const auto& train = config.train;
  std::string text = fmt::format(
      "up to {} ranks ({}, {} thread{} each), {} step{} of {} micro-batches of {} x {} tokens: "
      "train.global_batch_size {} here\n",
      options.ranks, transport, options.threads, options.threads == 1 ? "" : "s", options.steps,
      options.steps == 1 ? "" : "s", train.global_batch_size / train.micro_batch_size, train.micro_batch_size,
      config.data.seq_len, train.global_batch_size);
  text += fmt::format("compared with {}; = same bits, else the largest relative difference\n", name_of(plan.reference));
  text += skipped_lines(plan.skipped);
  text += "\n";
  return text + fmt::format(kColumns, "layout", "reduction", "dispatch", "executor", "loss", "norm", "gradient",
                            "counts", "drops", "bias", "weights", "flips", "promise", "verdict");
}

std::string heading_of(const OtherBatch& other) {
  return fmt::format("with train.global_batch_size {}, compared with {}\n", other.config.train.global_batch_size,
                     name_of(other.plan.reference));
}

std::string row_text(const Row& row) {
  std::string text =
      fmt::format(kColumns, short_name_of(row.layout), config::enum_name(row.layout.reduction),
                  dispatch_name_of(row.layout), config::enum_name(row.layout.executor), cell(row, Quantity::kLoss),
                  cell(row, Quantity::kNorm), cell(row, Quantity::kGradient), cell(row, Quantity::kCounts),
                  cell(row, Quantity::kDrops), cell(row, Quantity::kBias), cell(row, Quantity::kWeights),
                  cell(row, Quantity::kFlips), text_of(row.promise), verdict_of(row));
  if (row.first) text += fmt::format("    first: {}\n", describe(*row.first));
  return text;
}

bool all_hold(const std::vector<Row>& rows) {
  const bool broken = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.first.has_value(); });
  const bool flipped = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return !row.judged; });
  return !broken && (!flipped || judged_of(rows) > 0);
}

std::string closing(const std::vector<Row>& rows, const VerifyOptions& options) {
  const auto broken = std::count_if(rows.begin(), rows.end(), [](const Row& row) { return row.first.has_value(); });
  const auto unjudged = std::count_if(rows.begin(), rows.end(), [](const Row& row) { return !row.judged; });
  const auto only_measured =
      std::count_if(rows.begin(), rows.end(), [](const Row& row) { return row.judged && !row.first && measured(row); });
  const auto judged = judged_of(rows);
  std::string text = "\n";
  if (unjudged > 0)
    text += fmt::format("{} of {} layouts cannot be judged: top-k decisions flipped; leave --no-replay out\n", unjudged,
                        rows.size());
  if (judged == 0 && unjudged > 0) {
    text += "no promise could be judged\n";
  } else if (broken == 0) {
    text += fmt::format("all {} promises hold\n", judged);
  } else {
    text += fmt::format("{} of {} promises are BROKEN{}\n", broken, judged,
                        options.fault == Fault::kNone ? "" : ", as the planted fault should");
  }
  if (only_measured > 0)
    text += fmt::format("{} layouts are measured, not judged: nothing is promised of {}\n", only_measured,
                        fmt::join(unpromised(rows), " and of "));
  if (options.fault != Fault::kNone && broken == 0)
    text += "the planted fault was NOT found; it may need more --steps to show\n";
  return text;
}

Json to_json(const train::RunConfig& config, const LayoutPlan& plan, const VerifyOptions& options,
             const std::vector<Row>& rows) {
  Json json{{"ranks", options.ranks},
            {"steps", options.steps},
            {"threads", options.threads},
            {"replay", options.replay},
            {"global_batch_size", config.train.global_batch_size},
            {"micro_batch_size", config.train.micro_batch_size},
            {"seq_len", config.data.seq_len},
            {"reference", name_of(plan.reference)},
            {"rows", Json::array()},
            {"skipped", Json::array()},
            {"all_hold", all_hold(rows)}};
  for (const auto& row : rows) json["rows"].push_back(to_json(row));
  for (const auto& skipped : plan.skipped) json["skipped"].push_back({{"what", skipped.what}, {"why", skipped.why}});
  return json;
}

}  // namespace conclave::verify
