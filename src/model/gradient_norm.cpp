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

// Calls body(logical tensor, its begin in the flat buffer, its elements, whether it is frozen) in the buffer's order.
template <typename Body>
void for_tensors(const nn::Parameters& parameters, bool expert, const Body& body) {
  for (const auto& parameter : parameters.all()) {
    if (parameter.expert != expert) continue;
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = nn::element_count(part.held());
      body(part, begin, count, parameter.frozen);
      begin += count;
    }
  }
}

}  // namespace

std::vector<int64_t> norm_slice_starts(const nn::Parameters& parameters, bool expert) {
  std::vector<int64_t> starts;
  for_tensors(parameters, expert, [&](const auto&, int64_t begin, int64_t count, bool) {
    if (begin % kAlignment != 0) return;
    for (int64_t i = 0; i < slices_in(count); ++i) starts.push_back(begin + i * kernels::kNormSlice);
  });
  return starts;
}

template <typename Body>
void GradientNorm::for_parts(const std::vector<Piece>& pieces, int64_t begin, int64_t end, const Body& body) {
  const auto first = std::partition_point(pieces.begin(), pieces.end(),
                                          [&](const Piece& piece) { return piece.begin + piece.count <= begin; });
  for (auto piece = first; piece != pieces.end() && piece->begin < end; ++piece) {
    const int64_t from = std::max(piece->begin, begin), to = std::min(piece->begin + piece->count, end);
    if (from < to) body(static_cast<size_t>(piece - pieces.begin()), from, to - from);
  }
}

GradientNorm::Pieces GradientNorm::pieces_of(const nn::Parameters& parameters, const parallel::Shards& shards,
                                             const comm::Group& parts, bool expert) {
  Pieces pieces{{}, shards, {}, {}, parts};
  std::vector<int64_t> first_slice;  // of each piece
  int64_t all = 0;
  for_tensors(parameters, expert, [&](const nn::LogicalTensor& tensor, int64_t begin, int64_t count, bool frozen) {
    pieces.all.push_back({tensor.name, begin, count, !tensor.whole(), frozen});
    first_slice.push_back(all);
    all += slices_in(count);
  });
  for (int r = 0; r < shards.group().size(); ++r) {
    const size_t before = pieces.places.size();
    for (const auto& range : shards.ranges_of(r))
      for_parts(pieces.all, range.begin, range.end(), [&](size_t number, int64_t begin, int64_t count) {
        const int64_t inside = begin - pieces.all[number].begin;
        check(inside % kernels::kNormSlice == 0, "a slice has one owner");
        for (int64_t i = 0; i < slices_in(count); ++i)
          pieces.places.push_back(first_slice[number] + inside / kernels::kNormSlice + i);
      });
    pieces.slices_of_rank.push_back(std::ssize(pieces.places) - static_cast<int64_t>(before));
  }
  check(std::ssize(pieces.places) == all, "every slice has one owner");
  return pieces;
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
  std::vector<double> mine;
  for (const auto& range : pieces.shards.own())
    for_parts(pieces.all, range.begin, range.end(), [&](size_t, int64_t begin, int64_t count) {
      const auto sums = kernels::slice_sums_of_squares(own.narrow(0, range.at + begin - range.begin, count));
      mine.insert(mine.end(), sums.begin(), sums.end());
    });
  std::vector<double> gathered(pieces.places.size()), slices(gathered.size());
  pieces.shards.group().all_gather_v(std::span<const double>(mine), std::span<double>(gathered),
                                     std::span<const int64_t>(pieces.slices_of_rank));
  for (size_t i = 0; i < gathered.size(); ++i) slices[pieces.places[i]] = gathered[i];
  std::vector<double> sums;
  const double* next = slices.data();
  for (const Piece& piece : pieces.all) {
    const std::span<const double> own(next, static_cast<size_t>(slices_in(piece.count)));
    sums.push_back(piece.frozen ? 0.0 : tree_sum(own));
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
  std::optional<std::string> found;
  for_parts(pieces.all, begin, begin + range.numel(), [&](size_t number, int64_t from, int64_t count) {
    if (!found && kernels::first_non_finite(range.narrow(0, from - begin, count)) >= 0) found = pieces.all[number].name;
  });
  return found;
}

std::optional<std::string> GradientNorm::non_finite(bool expert, const Tensor& part, int64_t begin) const {
  return search(expert ? expert_ : dense_, part, begin);
}

std::optional<std::string> GradientNorm::non_finite_owned(const Tensor& dense, const Tensor& expert) const {
  for (const auto& [pieces, own] : {std::pair(&dense_, &dense), std::pair(&expert_, &expert)}) {
    for (const auto& range : pieces->shards.own()) {
      const auto found = search(*pieces, own->narrow(0, range.at, range.count), range.begin);
      if (found) return found;
    }
  }
  return std::nullopt;
}

}  // namespace conclave::model
