// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/plan.h"

#include <map>
#include <numeric>

#include "checkpoint/agreement.h"
#include "checkpoint/json_text.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

// Room for the role in front and the number of the part behind in a file's own tensor names.
constexpr size_t kMaxName = 200;
constexpr size_t kMaxRole = 32;

void check_entry(const parallel::StateEntry& entry) {
  const bool named = name_is_ours(entry.name) && entry.name.size() <= kMaxName && name_is_ours(entry.role) &&
                     entry.role.size() <= kMaxRole;
  if (!named) throw BugError("'{}' ({}) is no name for saved state", entry.name, entry.role);
  if (!inside(box_of(entry), entry.global_shape))
    throw BugError("{}: its box lies outside its global shape", entry.name);
  const auto elements = volume(entry.shape);
  const bool sized = elements && volume(entry.global_shape) &&
                     static_cast<int64_t>(entry.data.size()) == *elements * dtype_size(dtype_name(entry.dtype));
  if (!sized) throw BugError("{}: {} bytes do not make the shape of its box", entry.name, entry.data.size());
}

std::string describe(const parallel::StateDict& state) {
  Json rows = Json::array();
  for (const auto& entry : state)
    if (entry.writes)
      rows.push_back({entry.name, entry.role, dtype_name(entry.dtype), entry.global_shape, entry.offset, entry.shape});
  return rows.dump();
}

void add_row(std::map<TensorKey, PlannedTensor>& table, const Json& row, int rank) {
  const TensorKey key{row[0].get<std::string>(), row[1].get<std::string>()};
  const auto dtype = row[2].get<std::string>();
  const auto shape = row[3].get<Shape>();
  auto& tensor = table.try_emplace(key, PlannedTensor{key, dtype, shape, {}, {}}).first->second;
  if (tensor.dtype != dtype || tensor.shape != shape)
    throw BugError("rank {} and rank {} hold {} ({}) with different type or global shape", tensor.holders.front(), rank,
                   key.name, key.role);
  tensor.boxes.push_back({row[4].get<Shape>(), row[5].get<Shape>()});
  tensor.holders.push_back(rank);
}

const parallel::StateEntry& find(const parallel::StateDict& state, const TensorKey& key, const Box& box) {
  for (const auto& entry : state)
    if (entry.writes && entry.name == key.name && entry.role == key.role && box_of(entry) == box) return entry;
  throw BugError("{} ({}) is planned here but not held", key.name, key.role);
}

// Brings the parts of a split tensor to the holder of its first one. Returns its digest there, zero elsewhere.
Digest gathered_digest(const comm::Group& group, const PlannedTensor& tensor, const parallel::StateDict& state) {
  const int64_t item = dtype_size(tensor.dtype);
  const int root = tensor.holders.front();
  std::vector<std::byte> mine;
  std::vector<int64_t> sent(group.size()), received(group.size()), next(group.size());
  for (size_t i = 0; i < tensor.boxes.size(); ++i) {
    const int holder = tensor.holders[i];
    if (group.rank() == root) received[holder] += *volume(tensor.boxes[i].shape) * item;
    if (group.rank() != holder) continue;
    const auto data = find(state, tensor.key, tensor.boxes[i]).data;
    mine.insert(mine.end(), data.begin(), data.end());
  }
  sent[root] = std::ssize(mine);
  std::exclusive_scan(received.begin(), received.end(), next.begin(), int64_t{0});
  std::vector<std::byte> parts(next.back() + received.back());  // holder by holder
  group.all_to_all_v(std::span<const std::byte>(mine), std::span<const int64_t>(sent), std::span<std::byte>(parts),
                     std::span<const int64_t>(received));
  if (group.rank() != root) return {};
  const Box whole{Shape(tensor.shape.size(), 0), tensor.shape};
  std::vector<std::byte> all(parts.size());
  for (size_t i = 0; i < tensor.boxes.size(); ++i) {
    const auto& box = tensor.boxes[i];
    const int64_t bytes = *volume(box.shape) * item;
    const auto part = std::span<const std::byte>(parts).subspan(next[tensor.holders[i]], bytes);
    next[tensor.holders[i]] += bytes;
    if (bytes > 0) copy_part(box, BoxBytes<const std::byte>{box, part}, BoxBytes<std::byte>{whole, all}, item);
  }
  return tensor_digest(tensor.key, tensor.dtype, tensor.shape, all);
}

}  // namespace

TensorKey key_of(const parallel::StateEntry& entry) { return {entry.name, entry.role}; }
Box box_of(const parallel::StateEntry& entry) { return {entry.offset, entry.shape}; }
bool is_whole(const parallel::StateEntry& entry) { return entry.shape == entry.global_shape; }

Plan make_plan(const comm::Group& group, const parallel::StateDict& state) {
  agree(group, [&] {
    for (const auto& entry : state) check_entry(entry);
  });
  std::map<TensorKey, PlannedTensor> table;
  const auto rows = group.all_gather_text(describe(state));
  for (int rank = 0; rank < group.size(); ++rank)
    for (const auto& row : Json::parse(rows[static_cast<size_t>(rank)])) add_row(table, row, rank);
  Plan plan;
  for (auto& [key, tensor] : table) {
    try {
      check_tiling(tensor.shape, tensor.boxes, fmt::format("{} ({})", key.name, key.role));
    } catch (const DataError& error) {
      throw BugError("state to save: {}", error.what());
    }
    plan.push_back(std::move(tensor));
  }
  return plan;
}

int64_t total_bytes(const Plan& plan) {
  int64_t total = 0;
  for (const auto& tensor : plan) total += *volume(tensor.shape) * dtype_size(tensor.dtype);
  return total;
}

std::vector<Digest> tensor_digests(const comm::Group& group, const Plan& plan, const parallel::StateDict& state) {
  std::map<TensorKey, const parallel::StateEntry*> whole;
  for (const auto& entry : state)
    if (entry.writes && is_whole(entry)) whole[key_of(entry)] = &entry;
  std::vector<int64_t> words(plan.size() * 2);
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto& tensor = plan[i];
    Digest digest;
    if (tensor.boxes.size() > 1)
      digest = gathered_digest(group, tensor, state);
    else if (tensor.holders[0] == group.rank())
      digest = tensor_digest(tensor.key, tensor.dtype, tensor.shape, whole.at(tensor.key)->data);
    words[2 * i] = static_cast<int64_t>(digest.high);
    words[2 * i + 1] = static_cast<int64_t>(digest.low);
  }
  group.all_reduce(std::span<int64_t>(words));  // one rank holds each digest, the others zero
  std::vector<Digest> digests;
  for (size_t i = 0; i < plan.size(); ++i)
    digests.push_back({static_cast<uint64_t>(words[2 * i]), static_cast<uint64_t>(words[2 * i + 1])});
  return digests;
}

Digest combine(const Plan& plan, const std::vector<Digest>& digests) {
  std::vector<std::pair<TensorKey, Digest>> pairs;
  for (size_t i = 0; i < plan.size(); ++i) pairs.emplace_back(plan[i].key, digests[i]);
  return state_digest(std::move(pairs));
}

}  // namespace conclave::checkpoint
