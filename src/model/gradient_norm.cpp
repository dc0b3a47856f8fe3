// SPDX-License-Identifier: Apache-2.0
#include "model/gradient_norm.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "core/error.h"
#include "core/tree_sum.h"
#include "kernels/optimizer.h"

namespace conclave::model {
namespace {

constexpr int64_t kAlignment = 16;  // elements: 64 bytes in fp32

int64_t slices_in(int64_t elements) { return (elements + kernels::kNormSlice - 1) / kernels::kNormSlice; }

// Calls body(logical tensor, its begin in the flat buffer, its elements) in the buffer's order.
template <typename Body>
void for_tensors(const nn::Parameters& parameters, bool expert, const Body& body) {
  for (const auto& parameter : parameters.all()) {
    if (parameter.expert != expert) continue;
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = nn::element_count(part.held());
      body(part, begin, count);
      begin += count;
    }
  }
}

}  // namespace

std::vector<int64_t> norm_slice_starts(const nn::Parameters& parameters, bool expert) {
  std::vector<int64_t> starts;
  for_tensors(parameters, expert, [&](const auto&, int64_t begin, int64_t count) {
    if (begin % kAlignment != 0) return;
    for (int64_t i = 0; i < slices_in(count); ++i) starts.push_back(begin + i * kernels::kNormSlice);
  });
  return starts;
}

GradientNorm::Pieces GradientNorm::pieces_of(const nn::Parameters& parameters, const parallel::Shards& shards,
                                             const comm::Group& parts, bool expert) {
  Pieces pieces{{}, shards, {}, parts};
  for_tensors(parameters, expert, [&](const nn::LogicalTensor& tensor, int64_t begin, int64_t count) {
    pieces.all.push_back({tensor.name, begin, count, !tensor.whole()});
  });
  const std::vector<int64_t>& cuts = shards.cuts();
  for (size_t r = 0; r + 1 < cuts.size(); ++r) {
    int64_t& slices = pieces.slices_of_rank.emplace_back(0);
    for (const Piece& piece : pieces.all) {
      const Piece part = clipped(piece, cuts[r], cuts[r + 1]);
      check(part.count == 0 || (part.begin - piece.begin) % kernels::kNormSlice == 0, "a slice has one owner");
      slices += slices_in(part.count);
    }
  }
  return pieces;
}

GradientNorm::Piece GradientNorm::clipped(const Piece& piece, int64_t begin, int64_t end) {
  const int64_t first = std::max(piece.begin, begin), last = std::min(piece.begin + piece.count, end);
  return {piece.name, first, std::max<int64_t>(0, last - first), piece.spread};
}

GradientNorm::GradientNorm(const nn::Parameters& parameters, const Ownership& ownership, const parallel::Mesh& mesh)
    : dense_(pieces_of(parameters, ownership.dense, mesh.tp(), false)),
      expert_(pieces_of(parameters, ownership.expert, mesh.etp(), true)),
      ep_(mesh.ep()) {
  std::vector<std::string> names;
  for (const auto& piece : dense_.all) names.push_back(piece.name);
  std::string mine;
  for (const auto& piece : expert_.all) mine += piece.name + '\n';
  for (const auto& text : ep_.all_gather_text(mine)) {
    std::stringstream lines(text);
    for (std::string name; std::getline(lines, name);) names.push_back(name);
  }
  order_.resize(names.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return names[a] < names[b]; });
}

std::vector<double> GradientNorm::sums_of_squares(const Pieces& pieces, const Tensor& own) {
  const auto& shards = pieces.shards;
  std::vector<double> mine;
  for (const Piece& piece : pieces.all) {
    const Piece part = clipped(piece, shards.begin(), shards.end());
    if (part.count == 0) continue;
    const auto sums = kernels::slice_sums_of_squares(own.narrow(0, part.begin - shards.begin(), part.count));
    mine.insert(mine.end(), sums.begin(), sums.end());
  }
  const auto& counts = pieces.slices_of_rank;
  std::vector<double> slices(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  shards.group().all_gather_v(std::span<const double>(mine), std::span<double>(slices),
                              std::span<const int64_t>(counts));
  std::vector<double> sums;
  const double* next = slices.data();
  for (const Piece& piece : pieces.all) {
    sums.push_back(tree_sum(std::span<const double>(next, static_cast<size_t>(slices_in(piece.count)))));
    next += slices_in(piece.count);
  }
  return joined(pieces, sums);
}

std::vector<double> GradientNorm::joined(const Pieces& pieces, const std::vector<double>& sums) {
  const size_t parts = pieces.parts.size();
  if (parts == 1) return sums;
  std::vector<double> all(sums.size() * parts), whole;
  pieces.parts.all_gather(std::span<const double>(sums), std::span<double>(all));
  for (size_t i = 0; i < sums.size(); ++i) {
    std::vector<double> of_piece;
    for (size_t r = 0; r < (pieces.all[i].spread ? parts : 1); ++r) of_piece.push_back(all[r * sums.size() + i]);
    whole.push_back(tree_sum(std::span<const double>(of_piece)));
  }
  return whole;
}

double GradientNorm::operator()(const Tensor& dense, const Tensor& expert) const {
  std::vector<double> sums = sums_of_squares(dense_, dense);
  const std::vector<double> own = sums_of_squares(expert_, expert);
  std::vector<double> everywhere(own.size() * ep_.size());
  ep_.all_gather(std::span<const double>(own), std::span<double>(everywhere));
  sums.insert(sums.end(), everywhere.begin(), everywhere.end());
  std::vector<double> ordered;
  for (const size_t i : order_) ordered.push_back(sums[i]);
  return std::sqrt(tree_sum(std::span<const double>(ordered)));
}

std::optional<std::string> GradientNorm::search(const Pieces& pieces, const Tensor& range, int64_t begin) {
  if (kernels::first_non_finite(range) < 0) return std::nullopt;
  for (const Piece& piece : pieces.all) {
    const Piece part = clipped(piece, begin, begin + range.numel());
    if (part.count > 0 && kernels::first_non_finite(range.narrow(0, part.begin - begin, part.count)) >= 0)
      return piece.name;
  }
  return std::nullopt;
}

std::optional<std::string> GradientNorm::non_finite_dense(const Tensor& dense) const {
  return search(dense_, dense, 0);
}

std::optional<std::string> GradientNorm::non_finite_expert(const Tensor& expert) const {
  return search(expert_, expert, 0);
}

std::optional<std::string> GradientNorm::non_finite_owned(const Tensor& dense, const Tensor& expert) const {
  const auto found = search(dense_, dense, dense_.shards.begin());
  return found ? found : search(expert_, expert, expert_.shards.begin());
}

}  // namespace conclave::model
