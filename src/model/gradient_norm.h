// SPDX-License-Identifier: Apache-2.0
// The global gradient norm, each element counted once whoever owns it: sums of squares in fp64 for each slice of a
// logical tensor, added on fixed trees over the slices of a tensor and over tensors in the order of their names, so
// that the bits do not depend on dp, ep or who owns what. What tensor-parallel ranks hold of one tensor is added up in
// rank order; what all of them hold counts once, what is frozen not at all. Also finds what is not finite.
#pragma once

#include <optional>
#include <string>

#include "nn/parameters.h"
#include "parallel/mesh.h"
#include "parallel/shards.h"

namespace conclave::model {

// Where slices of the norm begin in the flat buffer, ascending: shards cut there leave every slice with one owner. Only
// places on 64-byte boundaries of an fp32 buffer.
std::vector<int64_t> norm_slice_starts(const nn::Parameters& parameters, bool expert);

// Who owns what of the flat buffers.
struct Ownership {
  parallel::Shards dense{0}, expert{0};
  const parallel::Shards& operator[](bool of_expert) const { return of_expert ? expert : dense; }
};

class GradientNorm {
 public:
  // Collective over the mesh's ep (names of the experts elsewhere).
  GradientNorm(const nn::Parameters& parameters, const Ownership& ownership, const parallel::Mesh& mesh);
  // Square root of the sum of squares. `dense` and `expert` are the gradients of the elements that this rank owns.
  // Collective over the owners, tp, ep and etp; equal on all ranks.
  double operator()(const Tensor& dense, const Tensor& expert) const;
  // Name of the first dense tensor, or expert's tensor of this rank, that holds a NaN or an infinity. `part` are the
  // elements from `begin` on of a buffer laid out like the parameters.
  std::optional<std::string> non_finite(bool expert, const Tensor& part, int64_t begin) const;
  // The first of all in the gradients of the elements that this rank owns.
  std::optional<std::string> non_finite_owned(const Tensor& dense, const Tensor& expert) const;

 private:
  struct Piece {
    std::string name;
    int64_t begin, count;
    bool spread;  // other ranks hold other parts of it
    bool frozen;  // counts as zero
  };
  // Of one flat buffer.
  struct Pieces {
    std::vector<Piece> all;
    parallel::Shards shards;
    std::vector<int64_t> slices_of_rank;  // how many each owner has
    std::vector<size_t> places;           // of the owners' slices, rank by rank, among those of all pieces in order
    comm::Group parts;                    // the ranks that hold the parts of what is spread
  };
  static Pieces pieces_of(const nn::Parameters& parameters, const parallel::Shards& shards, const comm::Group& parts,
                          bool expert);
  // Calls body(piece's number, begin, count of elements) for what [begin, end) has of each piece, in order.
  template <typename Body>
  static void for_parts(const std::vector<Piece>& pieces, int64_t begin, int64_t end, const Body& body);
  // `range` are the elements of the flat buffer from `begin` on.
  static std::optional<std::string> search(const Pieces& pieces, const Tensor& range, int64_t begin);
  // By piece, whoever owns it and however it is spread. Collective over the owners and the holders of parts.
  static std::vector<double> sums_of_squares(const Pieces& pieces, const Tensor& own);
  // Sums of what is held here → sums of the whole tensors. Collective over the holders of parts.
  static std::vector<double> joined(const Pieces& pieces, const std::vector<double>& sums);

  Pieces dense_, expert_;
  std::vector<size_t> order_;  // of (dense, experts of rank 0, experts of rank 1, ...) by name
  comm::Group ep_;
};

}  // namespace conclave::model
