// SPDX-License-Identifier: Apache-2.0
#include "model/gradient_norm.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include "core/tree_sum.h"
#include "kernels/optimizer.h"

namespace conclave::model {

GradientNorm::GradientNorm(const nn::Parameters& parameters, const comm::Group& ep) : ep_(ep) {
  std::string mine;
  for (const auto& parameter : parameters.all()) {
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = nn::element_count(part.shape);
      (parameter.expert ? expert_ : dense_).push_back({part.name, begin, count});
      if (parameter.expert) mine += part.name + '\n';
      begin += count;
    }
  }
  std::vector<std::string> names;
  for (const auto& piece : dense_) names.push_back(piece.name);
  for (const auto& text : ep.all_gather_text(mine)) {
    std::stringstream lines(text);
    for (std::string name; std::getline(lines, name);) names.push_back(name);
  }
  order_.resize(names.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::sort(order_.begin(), order_.end(), [&](size_t a, size_t b) { return names[a] < names[b]; });
}

double GradientNorm::operator()(const Tensor& dense, const Tensor& expert) const {
  std::vector<double> sums, own;
  for (const auto& piece : dense_) sums.push_back(kernels::sum_of_squares(dense.narrow(0, piece.begin, piece.count)));
  for (const auto& piece : expert_) own.push_back(kernels::sum_of_squares(expert.narrow(0, piece.begin, piece.count)));
  std::vector<double> everywhere(own.size() * ep_.size());
  ep_.all_gather(std::span<const double>(own), std::span<double>(everywhere));
  sums.insert(sums.end(), everywhere.begin(), everywhere.end());
  std::vector<double> ordered;
  for (const size_t i : order_) ordered.push_back(sums[i]);
  return std::sqrt(tree_sum(std::span<const double>(ordered)));
}

std::optional<std::string> GradientNorm::search(const std::vector<Piece>& pieces, const Tensor& flat) {
  if (kernels::first_non_finite(flat) < 0) return std::nullopt;
  for (const auto& piece : pieces)
    if (kernels::first_non_finite(flat.narrow(0, piece.begin, piece.count)) >= 0) return piece.name;
  return std::nullopt;
}

std::optional<std::string> GradientNorm::non_finite_dense(const Tensor& dense) const { return search(dense_, dense); }

std::optional<std::string> GradientNorm::non_finite_expert(const Tensor& expert) const {
  return search(expert_, expert);
}

}  // namespace conclave::model
