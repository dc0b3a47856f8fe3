// SPDX-License-Identifier: Apache-2.0
// Where the hidden activations of rows lie in memory when experts differ in width: row after row, each as wide as its
// expert, in one tensor without a shape of its own. Knows neither weights nor what is computed. F is the width of a
// row's expert.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "moe/dispatcher.h"

namespace conclave::moe {

class HiddenRows {
 public:
  // Neighbouring rows of one width: all of them where experts are equally wide.
  struct Run {
    int64_t begin = 0, rows = 0, width = 0;
    int64_t at = 0;  // sum of the widths of the rows before it
  };

  // Segments are the rows without gaps, in order; `widths` are those of the local experts.
  HiddenRows(std::span<const Segment> segments, std::span<const int64_t> widths);
  // Memory for `parts` numbers for each unit of width: 1 for activations, 2 for gate and up before them.
  Tensor empty(int64_t parts, const at::TensorOptions& options) const;
  // The rows of a segment, or of a run, in such memory: a view [rows, parts · F].
  Tensor segment(size_t index, const Tensor& hidden) const { return view(segments_[index], hidden); }
  Tensor run(const Run& run, const Tensor& hidden) const { return view(run, hidden); }
  const std::vector<Run>& runs() const { return runs_; }

 private:
  Tensor view(const Run& run, const Tensor& hidden) const;

  std::vector<Run> segments_, runs_;
  int64_t numbers_ = 0;  // of one part
};

}  // namespace conclave::moe
