// SPDX-License-Identifier: Apache-2.0
#include "train/replica_check.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "checkpoint/digest.h"
#include "train/host_copies.h"

namespace conclave::train {
namespace {

using parallel::Axis;

struct Copy {
  std::string name;
  checkpoint::Digest digest;
};

std::vector<Copy> copies(const model::Transformer& model, bool expert, bool whole_only) {
  const nn::Parameters& parameters = model.parameters();
  HostCopies host(model);
  std::vector<std::pair<std::string, Tensor>> held;
  for (const auto& parameter : parameters.all()) {
    if (parameter.expert != expert) continue;
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = nn::element_count(part.held());
      if (!whole_only || part.whole())
        held.emplace_back(part.name, host.of(parameters.flat(expert).narrow(0, begin, count)));
      begin += count;
    }
  }
  host.arrive();
  std::vector<Copy> all;
  for (const auto& [name, numbers] : held)
    all.push_back({name, checkpoint::xxh3(std::as_bytes(elements<float>(numbers)))});
  return all;
}

// What the methods of routing and balancing carry along: every rank has all of it.
void append_state(const model::Transformer& model, std::vector<Copy>& all) {
  const auto append = [&](const std::string& owner, const moe::MethodState& methods) {
    for (const auto& [name, value] : methods.entries())
      all.push_back(
          {owner + name, checkpoint::xxh3({static_cast<const std::byte*>(value.data_ptr()), value.nbytes()})});
  };
  for (size_t l = 0; l < model.state().layers.size(); ++l)
    append(fmt::format("layers.{}.moe.router.", model.moe_layers()[l]), model.state().layers[l]);
  append("moe.", model.state().shared);
}

// Members that do not have what most have; with two of two minds, both.
std::vector<int64_t> odd_ones(const std::vector<checkpoint::Digest>& digests) {
  const auto votes = [&](const checkpoint::Digest& d) { return std::count(digests.begin(), digests.end(), d); };
  const auto most = *std::max_element(digests.begin(), digests.end(),
                                      [&](const auto& a, const auto& b) { return votes(a) < votes(b); });
  const bool majority = 2 * votes(most) > std::ssize(digests);
  std::vector<int64_t> odd;
  for (size_t i = 0; i < digests.size(); ++i)
    if (!majority || digests[i] != most) odd.push_back(static_cast<int64_t>(i));
  return odd;
}

std::string compare(const model::Transformer& model, Axis axis, bool expert, bool whole_only) {
  const parallel::Mesh& mesh = model.mesh();
  const comm::Group& holders = mesh.group(axis);
  if (holders.size() == 1) return "";
  auto mine = copies(model, expert, whole_only);
  if (!expert) append_state(model, mine);
  std::vector<checkpoint::Digest> own, all(mine.size() * holders.size());
  for (const Copy& copy : mine) own.push_back(copy.digest);
  holders.all_gather(std::span<const checkpoint::Digest>(own), std::span<checkpoint::Digest>(all));
  auto ranks = parallel::members_of(axis, mesh.world().rank(), mesh.sizes());
  for (int64_t& rank : ranks) rank = mesh.job_rank(rank);
  for (size_t i = 0; i < mine.size(); ++i) {
    std::vector<checkpoint::Digest> digests;
    for (int r = 0; r < holders.size(); ++r) digests.push_back(all[r * mine.size() + i]);
    if (std::equal(digests.begin() + 1, digests.end(), digests.begin())) continue;
    std::vector<int64_t> odd = odd_ones(digests);
    for (int64_t& member : odd) member = ranks[member];
    return fmt::format("copies of {} are no longer equal on the ranks of {} ({}): rank{} {} differ{}", mine[i].name,
                       parallel::name_of(axis), fmt::join(ranks, ", "), odd.size() == 1 ? "" : "s",
                       fmt::join(odd, ", "), odd.size() == 1 ? "s" : "");
  }
  return "";
}

}  // namespace

// All three are compared whatever the first says: other ranks take part in them.
std::string unequal_copies(const model::Transformer& model) {
  std::string first;
  for (const std::string& unequal : {compare(model, Axis::kDp, false, false), compare(model, Axis::kTp, false, true),
                                     compare(model, Axis::kEdp, true, false)})
    if (first.empty()) first = unequal;
  return first;
}

void check_replicas(const model::Transformer& model) {
  const std::string unequal = unequal_copies(model);
  if (unequal.empty()) return;
  throw NumericError(
      "{}\n  A bit flipped in memory, or a machine computes wrongly. Nothing was saved since; continue from the last "
      "checkpoint, without that machine if it happens again.",
      unequal);
}

}  // namespace conclave::train
