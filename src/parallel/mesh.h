// SPDX-License-Identifier: Apache-2.0
// The process mesh: the only place that knows how a rank's number, its coordinates and the groups it belongs to hang
// together. It decides nothing about which axes are implemented; the configuration check refuses those.
//
// Axes of the dense view, slowest first (contract: world = pp * dp * cp * tp):
//
//   axis  what                group of ranks with the same
//   pp    pipeline stage      dp, cp, tp
//   dp    data                pp, cp, tp: the same dense weights, other micro-batches
//   cp    part of a sequence  pp, dp, tp
//   tp    part of a tensor    pp, dp, cp
//
// The expert view numbers the same ranks of one stage again, slowest first (pp *) edp * ep * etp:
//
//   edp   copies of experts   pp, ep, etp: the same expert weights
//   ep    set of experts      pp, edp, etp: together every expert once
//   etp   part of an expert   pp, edp, ep
//
// Derived sizes: edp = dp * cp * tp / (ep * etp); dp, when not given, = world / (pp * cp * tp).
// With cp = tp = etp = 1: dp rank = edp rank * ep + ep rank, so the data-parallel ranks that send tokens to the experts
// of one rank are ep consecutive ones.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/group.h"
#include "parallel/parallel_config.h"

namespace conclave::parallel {

enum class Axis { kPp, kDp, kCp, kTp, kEdp, kEp, kEtp };
inline constexpr int kAxes = 7;
const char* name_of(Axis axis);

// Sizes of all axes, or one rank's coordinate on each.
struct AxisValues {
  std::array<int64_t, kAxes> values{};
  int64_t& operator[](Axis axis) { return values[static_cast<int>(axis)]; }
  int64_t operator[](Axis axis) const { return values[static_cast<int>(axis)]; }
  bool operator==(const AxisValues&) const = default;
};

// Something the configuration asks of the mesh that cannot be had.
struct MeshProblem {
  std::string path;  // the key, e.g. "parallel.ep"
  std::string message;
};
// Everything wrong with `config` in a world of `world` ranks; empty when it fits.
std::vector<MeshProblem> mesh_problems(const ParallelConfig& config, int64_t world);
// The sizes. Throws ConfigError with all problems.
AxisValues mesh_sizes(const ParallelConfig& config, int64_t world);

AxisValues coordinates_of(int64_t rank, const AxisValues& sizes);
// The number, in the order above, of the rank that `order` (axes of the dense view, slowest first) numbers `rank`: with
// [tp, dp, cp, pp] tensor-parallel ranks are as far apart as they can be.
int64_t number_of(int64_t rank, const AxisValues& sizes, const std::vector<std::string>& order);
// Whether `order` names each axis of the dense view once.
bool is_rank_order(const std::vector<std::string>& order);
// The world ranks that differ from `rank` on `axis` only (of its view), in the order of that axis.
std::vector<int64_t> members_of(Axis axis, int64_t rank, const AxisValues& sizes);

// The micro-batches of a step that one data-parallel rank works on: [first, first + count).
struct MicroBatches {
  int64_t first = 0;
  int64_t count = 0;
};

class Mesh {
 public:
  Mesh();  // one rank, every axis 1
  // Collective over `world`; compares size and members of every new group with the arithmetic and throws CommError when
  // the transport built another one.
  Mesh(const comm::Group& world, const AxisValues& sizes);
  // What the configuration asks for. Ranks are numbered anew where parallel.rank_order says so. Throws ConfigError with
  // all problems.
  Mesh(const comm::Group& world, const ParallelConfig& config);

  // All ranks, as the mesh numbers them.
  const comm::Group& world() const { return world_; }
  // The number that the job gave to the rank which the mesh numbers `rank`: for messages, so that they name the process
  // that mpirun and the logs do. Other than `rank` only with parallel.rank_order.
  int64_t job_rank(int64_t rank) const { return job_ranks_[rank]; }
  const comm::Group& group(Axis axis) const { return groups_[static_cast<int>(axis)]; }
  const comm::Group& dp() const { return group(Axis::kDp); }
  const comm::Group& ep() const { return group(Axis::kEp); }
  const comm::Group& edp() const { return group(Axis::kEdp); }
  const comm::Group& tp() const { return group(Axis::kTp); }
  const comm::Group& etp() const { return group(Axis::kEtp); }
  int64_t size(Axis axis) const { return sizes_[axis]; }
  int64_t coordinate(Axis axis) const { return coordinates_[axis]; }
  const AxisValues& sizes() const { return sizes_; }
  const AxisValues& coordinates() const { return coordinates_; }

  // This rank's share of a step of `total` micro-batches; dp divides total (checked by the configuration).
  MicroBatches micro_batches(int64_t total) const;

 private:
  comm::Group world_;
  std::vector<int64_t> job_ranks_;  // of each rank of world_
  AxisValues sizes_;
  AxisValues coordinates_;
  std::array<comm::Group, kAxes> groups_;
};

}  // namespace conclave::parallel
