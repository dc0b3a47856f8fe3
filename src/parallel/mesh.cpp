// SPDX-License-Identifier: Apache-2.0
#include "parallel/mesh.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace conclave::parallel {
namespace {

constexpr std::array kDenseView = {Axis::kPp, Axis::kDp, Axis::kCp, Axis::kTp};
constexpr std::array kExpertView = {Axis::kPp, Axis::kEdp, Axis::kEp, Axis::kEtp};
constexpr std::array kAllAxes = {Axis::kPp, Axis::kDp, Axis::kCp, Axis::kTp, Axis::kEdp, Axis::kEp, Axis::kEtp};

bool is_expert_axis(Axis axis) { return axis == Axis::kEdp || axis == Axis::kEp || axis == Axis::kEtp; }

// The rank at `coordinates` of the view that has `axis`.
int64_t rank_at(const AxisValues& coordinates, const AxisValues& sizes, Axis axis) {
  int64_t rank = 0;
  for (const Axis a : is_expert_axis(axis) ? kExpertView : kDenseView) rank = rank * sizes[a] + coordinates[a];
  return rank;
}

void set_coordinates(AxisValues& coordinates, int64_t rank, const AxisValues& sizes, const std::array<Axis, 4>& view) {
  for (auto axis = view.rbegin(); axis != view.rend(); ++axis) {
    coordinates[*axis] = rank % sizes[*axis];
    rank /= sizes[*axis];
  }
}

bool divides_either_way(int64_t a, int64_t b) { return a % b == 0 || b % a == 0; }

// The ranks of one pipeline stage, or nothing when the dense axes do not fill the world.
std::optional<int64_t> stage_size(const ParallelConfig& c, int64_t world, std::vector<MeshProblem>& problems) {
  const int64_t others = c.pp * c.cp * c.tp;
  if (c.dp && *c.dp * others != world) {
    problems.push_back(
        {"parallel.dp", fmt::format("pp {} x dp {} x cp {} x tp {} make {} ranks, but {} run; start with "
                                    "mpirun -n {}, or leave dp out",
                                    c.pp, *c.dp, c.cp, c.tp, *c.dp * others, world, *c.dp * others)});
    return std::nullopt;
  }
  if (world % others != 0) {
    problems.push_back({"parallel", fmt::format("pp {} x cp {} x tp {} = {} does not divide the {} ranks that run",
                                                c.pp, c.cp, c.tp, others, world)});
    return std::nullopt;
  }
  return world / c.pp;
}

}  // namespace

const char* name_of(Axis axis) {
  constexpr std::array<const char*, kAxes> kNames = {"pp", "dp", "cp", "tp", "edp", "ep", "etp"};
  return kNames[static_cast<int>(axis)];
}

std::vector<MeshProblem> mesh_problems(const ParallelConfig& c, int64_t world) {
  std::vector<MeshProblem> problems;
  const std::array<std::pair<const char*, int64_t>, 6> axes = {
      {{"pp", c.pp}, {"dp", c.dp.value_or(1)}, {"cp", c.cp}, {"tp", c.tp}, {"ep", c.ep}, {"etp", c.etp}}};
  constexpr int64_t kMostRanks = int64_t{1} << 20;  // so that products of axes stay within int64
  for (const auto& [name, size] : axes)
    if (size < 1 || size > kMostRanks)
      problems.push_back({fmt::format("parallel.{}", name), fmt::format("{} is no number of ranks", size)});
  if (!is_rank_order(c.rank_order))
    problems.push_back({"parallel.rank_order", "names each of pp, dp, cp and tp once, slowest first"});
  if (!problems.empty()) return problems;
  const std::optional<int64_t> stage = stage_size(c, world, problems);
  const int64_t expert = c.ep * c.etp;
  if (stage && *stage % expert != 0)
    problems.push_back(
        {"parallel.ep", fmt::format("ep {} x etp {} = {} does not divide dp x cp x tp = {}; ep spreads the "
                                    "experts over these ranks, it adds none",
                                    c.ep, c.etp, expert, *stage)});
  if (c.tp % c.etp != 0) problems.push_back({"parallel.etp", fmt::format("etp {} does not divide tp {}", c.etp, c.tp)});
  if (!divides_either_way(expert, c.cp * c.tp))
    problems.push_back(
        {"parallel.ep", fmt::format("ep {} x etp {} = {} neither divides cp x tp = {} nor is a multiple of it", c.ep,
                                    c.etp, expert, c.cp * c.tp)});
  return problems;
}

AxisValues mesh_sizes(const ParallelConfig& config, int64_t world) {
  const std::vector<MeshProblem> problems = mesh_problems(config, world);
  if (!problems.empty()) {
    std::string text;
    for (const MeshProblem& problem : problems)
      text += fmt::format("{}{}: {}", text.empty() ? "" : "\n", problem.path, problem.message);
    throw ConfigError("{}", text);
  }
  AxisValues sizes;
  sizes[Axis::kPp] = config.pp;
  sizes[Axis::kCp] = config.cp;
  sizes[Axis::kTp] = config.tp;
  sizes[Axis::kDp] = world / (config.pp * config.cp * config.tp);
  sizes[Axis::kEp] = config.ep;
  sizes[Axis::kEtp] = config.etp;
  sizes[Axis::kEdp] = world / (config.pp * config.ep * config.etp);
  return sizes;
}

AxisValues coordinates_of(int64_t rank, const AxisValues& sizes) {
  AxisValues coordinates;
  set_coordinates(coordinates, rank, sizes, kDenseView);
  set_coordinates(coordinates, rank, sizes, kExpertView);
  return coordinates;
}

std::vector<int64_t> members_of(Axis axis, int64_t rank, const AxisValues& sizes) {
  AxisValues coordinates = coordinates_of(rank, sizes);
  std::vector<int64_t> members;
  for (int64_t i = 0; i < sizes[axis]; ++i) {
    coordinates[axis] = i;
    members.push_back(rank_at(coordinates, sizes, axis));
  }
  return members;
}

bool is_rank_order(const std::vector<std::string>& order) {
  std::vector<std::string> names;
  for (const Axis axis : kDenseView) names.emplace_back(name_of(axis));
  return std::is_permutation(order.begin(), order.end(), names.begin(), names.end());
}

int64_t number_of(int64_t rank, const AxisValues& sizes, const std::vector<std::string>& order) {
  check(is_rank_order(order), "an order has every axis once");
  std::array<Axis, 4> view{};
  for (size_t i = 0; i < view.size(); ++i)
    view[i] = *std::find_if(kDenseView.begin(), kDenseView.end(), [&](Axis axis) { return order[i] == name_of(axis); });
  AxisValues coordinates;
  set_coordinates(coordinates, rank, sizes, view);
  return rank_at(coordinates, sizes, Axis::kDp);
}

Mesh::Mesh() : job_ranks_{0} { sizes_.values.fill(1); }

Mesh::Mesh(const comm::Group& world, const ParallelConfig& config)
    : Mesh(config.rank_order == ParallelConfig().rank_order
               ? world
               : world.split(
                     0, static_cast<int>(number_of(world.rank(), mesh_sizes(config, world.size()), config.rank_order))),
           mesh_sizes(config, world.size())) {
  job_ranks_ = world_.all_gather_value(static_cast<int64_t>(world.rank()));
}

Mesh::Mesh(const comm::Group& world, const AxisValues& sizes)
    : world_(world), job_ranks_(world.size()), sizes_(sizes), coordinates_(coordinates_of(world.rank(), sizes)) {
  std::iota(job_ranks_.begin(), job_ranks_.end(), 0);
  for (const auto& view : {kDenseView, kExpertView}) {
    int64_t ranks = 1;
    for (const Axis axis : view) ranks *= sizes[axis];
    check(ranks == world.size(), "the axes of a mesh fill its world");
  }
  for (const Axis axis : kAllAxes) {
    const std::vector<int64_t> expected = members_of(axis, world.rank(), sizes);
    comm::Group& group = groups_[static_cast<int>(axis)];
    // The lowest member names the group.
    group = world.split(static_cast<int>(expected.front()), static_cast<int>(coordinates_[axis]));
    const std::vector<int64_t> members = group.all_gather_value(static_cast<int64_t>(world.rank()));
    if (members != expected || group.rank() != coordinates_[axis])
      throw CommError("the {} group of rank {} should be ranks {}, but the {} transport made it {}", name_of(axis),
                      world.rank(), fmt::join(expected, " "), world.transport_name(), fmt::join(members, " "));
  }
}

MicroBatches Mesh::micro_batches(int64_t total) const {
  check(total % size(Axis::kDp) == 0, "dp divides the micro-batches of a step");
  const int64_t count = total / size(Axis::kDp);
  return {coordinate(Axis::kDp) * count, count};
}

}  // namespace conclave::parallel
