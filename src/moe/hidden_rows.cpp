// SPDX-License-Identifier: Apache-2.0
#include "moe/hidden_rows.h"

#include <ATen/ops/empty.h>

#include "core/error.h"

namespace conclave::moe {

HiddenRows::HiddenRows(std::span<const Segment> segments, std::span<const int64_t> widths) {
  int64_t rows = 0;
  for (const Segment& segment : segments) {
    check(segment.begin == rows, "segments follow each other without gaps");
    const int64_t width = widths[segment.expert];
    segments_.push_back({rows, segment.rows, width, numbers_});
    if (runs_.empty() || runs_.back().width != width) runs_.push_back({rows, 0, width, numbers_});
    runs_.back().rows += segment.rows;
    rows += segment.rows;
    numbers_ += segment.rows * width;
  }
}

Tensor HiddenRows::empty(int64_t parts, const at::TensorOptions& options) const {
  return at::empty({parts * numbers_}, options);
}

Tensor HiddenRows::view(const Run& run, const Tensor& hidden) const {
  const int64_t parts = numbers_ == 0 ? 1 : hidden.numel() / numbers_;
  return hidden.narrow(0, parts * run.at, parts * run.rows * run.width).view({run.rows, parts * run.width});
}

}  // namespace conclave::moe
