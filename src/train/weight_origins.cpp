// SPDX-License-Identifier: Apache-2.0
#include "train/weight_origins.h"

#include <charconv>
#include <string_view>

namespace conclave::train {
namespace {

// The number at the start of `text`, which is taken off; nothing if there is none.
std::optional<int64_t> take_number(std::string_view& text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(end - text.data());
  return number;
}

}  // namespace

std::optional<int64_t> layer_of(const std::string& name) {
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) return std::nullopt;
  std::string_view rest = std::string_view(name).substr(kLayers.size());
  return take_number(rest);
}

std::optional<Origin> expert_origin(const parallel::StateEntry& entry, const Upcycling& upcycling) {
  constexpr std::string_view kExperts = ".moe.experts.";
  const size_t at = entry.name.find(kExperts);
  if (at == std::string::npos) return std::nullopt;
  std::string_view which = std::string_view(entry.name).substr(at + kExperts.size());
  const auto expert = take_number(which);
  if (!expert) return std::nullopt;
  const bool down = which == ".down.weight";
  const int64_t slices = upcycling.granularity, slice = *expert % slices;
  const size_t cut = down ? 1 : 0;  // the dimension of the FFN's width
  Origin origin{.name = entry.name.substr(0, at) + ".ffn" + std::string(which),
                .shape = entry.global_shape,
                .box = {entry.offset, entry.shape}};
  origin.box.offset[cut] += slice * entry.global_shape[cut];
  origin.shape[cut] *= slices;
  origin.first = static_cast<int>(*expert / slices * upcycling.runs / upcycling.copies);
  if (down) origin.scale = static_cast<double>(slices) / upcycling.weight_sum;
  return origin;
}

}  // namespace conclave::train
