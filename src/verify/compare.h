// SPDX-License-Identifier: Apache-2.0
// One step of a rank beside the same step of the reference: how far apart each quantity is, and whether that keeps a
// promise. It runs no step.
#pragma once

#include <string>
#include <vector>

#include "verify/rank_run.h"

namespace conclave::verify {

// In the order in which a step computes them, so the first that differs is nearest to the cause.
enum class Quantity { kFlips, kCounts, kDrops, kLoss, kGradient, kNorm, kBias, kWeights };
const char* name_of(Quantity quantity);

// What kClose allows, and the share of the global norm that a tensor's norm counts as at least.
inline constexpr double kTolerance = 1e-5;
inline constexpr double kNormFloor = 1e-6;
// Tokens whose experts may flip in a step of a rank under kClose: rounding decides between equal scores, which are
// rare.
inline constexpr double kFlips = 2, kFlipShare = 0.005;
// Stands for a difference that is not finite.
inline constexpr double kNotFinite = 1e99;

struct Measure {
  Quantity quantity = Quantity::kLoss;
  int64_t step = 0;  // from 0
  // Relative: |a - b| / |b|, for tensors of their norms (the largest of all tensors). Flips, counts and drops: how many
  // differ.
  double difference = 0;
  int64_t of = 0;  // flips: tokens that were compared
  bool same_bits = true;
  std::string where = {};  // the tensor, layer or expert; empty where there is only one
  int rank = 0;
};

// Whether `measure` breaks `promise`. A few flips are no break of kClose: they are what replaying is for. Many are,
// since nothing else shows experts that are chosen wrongly: the rest is computed with replayed ids. Of kMeasured only
// what is not finite is.
bool breaks(const Measure& measure, Promise promise);
std::string describe(const Measure& measure);

// Everything but flips, as this rank sees it; step and rank are left to the caller. Weights and moments are compared
// with the reference only for kBitwise, with the copies of other ranks always. Collective.
std::vector<Measure> compare_step(RankRun& run, const train::StepReport& report, const StepTrace& expected,
                                  Promise promise);

}  // namespace conclave::verify
