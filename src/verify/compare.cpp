// SPDX-License-Identifier: Apache-2.0
#include "verify/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace conclave::verify {
namespace {

double finite(double difference) { return std::isfinite(difference) ? difference : kNotFinite; }

Measure of_number(Quantity quantity, double got, double expected) {
  Measure measure{.quantity = quantity};
  measure.same_bits = std::bit_cast<uint64_t>(got) == std::bit_cast<uint64_t>(expected);
  if (!measure.same_bits) measure.difference = finite(std::abs(got - expected) / std::abs(expected));
  return measure;
}

// How many of the layers' counts differ, and the first of them.
struct CountDifferences {
  Measure measure;

  void add(int64_t got, int64_t expected, const std::string& what) {
    if (got == expected) return;
    if (measure.same_bits) measure.where = fmt::format("{} is {}, not {}", what, got, expected);
    measure.same_bits = false;
    measure.difference += 1;
  }
  void add(const std::vector<int64_t>& got, const std::vector<int64_t>& expected, const std::string& what) {
    for (size_t e = 0; e < expected.size(); ++e) add(got[e], expected[e], fmt::format("{} of expert {}", what, e));
  }
};

std::array<Measure, 2> of_counts(const train::StepReport& got, const train::StepReport& expected) {
  CountDifferences counts{{.quantity = Quantity::kCounts}}, drops{{.quantity = Quantity::kDrops}};
  for (size_t l = 0; l < expected.layers.size(); ++l) {
    const auto& a = got.layers[l];
    const auto& b = expected.layers[l];
    const std::string layer = fmt::format("MoE layer {}: ", l);
    counts.add(a.tokens, b.tokens, layer + "number of tokens");
    counts.add(a.chosen_E, b.chosen_E, layer + "choices");
    counts.add(a.selected_E, b.selected_E, layer + "selections");
    counts.add(a.dispatched_E, b.dispatched_E, layer + "rows");
    drops.add(a.dropped, b.dropped, layer + "number of drops");
  }
  return {counts.measure, drops.measure};
}

double norm(std::span<const float> values) {
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  return std::sqrt(squares);
}

// ||a - b|| / scale.
double distance(std::span<const float> a, std::span<const float> b, double scale) {
  double squares = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    squares += d * d;
  }
  return squares == 0 ? 0 : finite(std::sqrt(squares) / scale);
}

std::span<const float> floats(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const float*>(bytes.data()), bytes.size() / sizeof(float)};
}

// Tensors against their copies in the reference; the worst names itself.
Measure of_tensors(Quantity quantity, const parallel::StateDict& entries,
                   const std::map<std::string, std::vector<std::byte>>& expected, double floor) {
  Measure worst{.quantity = quantity};
  for (const auto& entry : entries) {
    const auto& whole = expected.at(key_of(entry));
    const auto bytes = part_of(whole, entry);
    check(entry.data.size() == bytes.size(), "a part of the reference has the size of the rank's");
    if (std::memcmp(entry.data.data(), bytes.data(), bytes.size()) == 0) continue;
    const bool number = entry.dtype == comm::DType::kFloat32;
    const double difference =
        number ? distance(floats(entry.data), floats(bytes), std::max(norm(floats(whole)), floor)) : 1.0;
    if (!worst.same_bits && difference <= worst.difference) continue;
    worst.same_bits = false;
    worst.difference = difference;
    worst.where = entry.role == std::string(train::kGradientRole) ? entry.name : key_of(entry);
  }
  return worst;
}

parallel::StateDict select(const parallel::StateDict& entries, bool buffers) {
  parallel::StateDict selected;
  for (const auto& entry : entries)
    if ((entry.role == train::kBufferRole) == buffers) selected.push_back(entry);
  return selected;
}

}  // namespace

const char* name_of(Quantity quantity) {
  constexpr std::array<const char*, 8> kNames = {"flips",    "counts", "drops", "loss",
                                                 "gradient", "norm",   "bias",  "weights"};
  return kNames[static_cast<size_t>(quantity)];
}

bool breaks(const Measure& measure, Promise promise) {
  if (promise == Promise::kBitwise) return !measure.same_bits;
  if (promise == Promise::kMeasured) return measure.difference >= kNotFinite;
  if (measure.quantity == Quantity::kFlips)
    return measure.difference > std::max(kFlips, kFlipShare * static_cast<double>(measure.of));
  if (measure.quantity == Quantity::kCounts || measure.quantity == Quantity::kDrops) return !measure.same_bits;
  return !(measure.difference <= kTolerance);
}

std::string describe(const Measure& measure) {
  const bool counted = measure.quantity <= Quantity::kDrops;
  const std::string size = measure.difference >= kNotFinite ? "not finite"
                           : measure.of > 0 ? fmt::format("{:.0f} of {} tokens", measure.difference, measure.of)
                           : counted        ? fmt::format("{:.0f} differ", measure.difference)
                           : measure.difference == 0 ? "only the sign of a zero"
                                                     : fmt::format("{:.1e}", measure.difference);
  return fmt::format("step {}, {}{} on rank {}: {}", measure.step + 1, name_of(measure.quantity),
                     measure.where.empty() ? "" : fmt::format(" ({})", measure.where), measure.rank, size);
}

std::vector<Measure> compare_step(RankRun& run, const train::StepReport& report, const StepTrace& expected,
                                  Promise promise) {
  std::vector<Measure> measures;
  if (!expected.report.layers.empty())
    for (auto& measure : of_counts(report, expected.report)) measures.push_back(std::move(measure));
  measures.push_back(of_number(Quantity::kLoss, report.loss, expected.report.loss));
  measures.push_back(
      of_tensors(Quantity::kGradient, run.gradient(), expected.gradient, kNormFloor * expected.gradient_norm));
  measures.push_back(of_number(Quantity::kNorm, report.grad_norm, expected.report.grad_norm));
  const auto state = run.state();
  const auto buffers = select(state, true);
  if (!buffers.empty()) measures.push_back(of_tensors(Quantity::kBias, buffers, expected.state, 0));
  if (std::string unequal = run.unequal_copies(); !unequal.empty())
    measures.push_back(
        {.quantity = Quantity::kWeights, .difference = 1, .same_bits = false, .where = std::move(unequal)});
  if (promise == Promise::kBitwise)
    measures.push_back(of_tensors(Quantity::kWeights, select(state, false), expected.state, 0));
  return measures;
}

}  // namespace conclave::verify
