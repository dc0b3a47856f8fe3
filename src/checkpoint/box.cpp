// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/box.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr int64_t kMaxVolume = int64_t{1} << 62;
// Keeps the pairwise test short whatever a manifest claims.
constexpr size_t kMaxBoxes = 16384;

void check_disjoint(std::vector<Box> boxes, const std::string& what) {
  const auto begin = [](const Box& box) { return box.shape.empty() ? 0 : box.offset[0]; };
  const auto end = [](const Box& box) { return box.shape.empty() ? 1 : box.offset[0] + box.shape[0]; };
  std::sort(boxes.begin(), boxes.end(), [&](const Box& a, const Box& b) { return begin(a) < begin(b); });
  for (size_t i = 0; i < boxes.size(); ++i)
    for (size_t j = i + 1; j < boxes.size() && begin(boxes[j]) < end(boxes[i]); ++j)
      if (intersection(boxes[i], boxes[j])) throw DataError("{}: two saved parts overlap", what);
}

// Position of global index `index` in the row-major bytes of `box`, in elements.
int64_t position(const Box& box, const Shape& index) {
  int64_t at = 0;
  for (size_t d = 0; d < index.size(); ++d) at = at * box.shape[d] + (index[d] - box.offset[d]);
  return at;
}

// Steps `index` through the rows of `part` (all dimensions but the last); false after the last row.
bool next_row(const Box& part, Shape& index) {
  for (size_t d = index.size() - 1; d-- > 0;) {
    if (++index[d] < part.offset[d] + part.shape[d]) return true;
    index[d] = part.offset[d];
  }
  return false;
}

// Appends the elements [begin, end) of what `box` is when its dimensions from `dim` on are whole.
void append_boxes(std::vector<Box>& boxes, Box box, size_t dim, int64_t begin, int64_t end) {
  if (begin >= end) return;
  if (dim == box.shape.size()) return boxes.push_back(std::move(box));
  const int64_t row = *volume(std::span(box.shape).subspan(dim + 1));
  const auto part_of_row = [&](int64_t index, int64_t from, int64_t to) {
    Box inner = box;
    inner.offset[dim] = index;
    inner.shape[dim] = 1;
    append_boxes(boxes, std::move(inner), dim + 1, from, to);
  };
  const int64_t first = (begin + row - 1) / row, last = end / row;  // whole rows
  if (first > last) return part_of_row(last, begin - last * row, end - last * row);
  part_of_row(first - 1, begin - (first - 1) * row, row);
  if (first < last) {
    Box middle = box;
    middle.offset[dim] = first;
    middle.shape[dim] = last - first;
    boxes.push_back(std::move(middle));
  }
  part_of_row(last, 0, end - last * row);
}

}  // namespace

std::vector<Box> boxes_of_range(const Shape& global, int64_t begin, int64_t end) {
  const auto elements = volume(global);
  check(elements && begin >= 0 && begin <= end && end <= *elements, "a range of a tensor's elements");
  std::vector<Box> boxes;
  append_boxes(boxes, {Shape(global.size(), 0), global}, 0, begin, end);
  return boxes;
}

std::optional<int64_t> volume(std::span<const int64_t> shape) {
  if (std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 0; })) return std::nullopt;
  if (std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size == 0; })) return 0;
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size > kMaxVolume / product) return std::nullopt;
    product *= size;
  }
  return product;
}

bool inside(const Box& box, const Shape& global) {
  if (box.offset.size() != global.size() || box.shape.size() != global.size()) return false;
  for (size_t d = 0; d < global.size(); ++d) {
    const bool fits = box.offset[d] >= 0 && box.shape[d] >= 0 && box.offset[d] <= global[d] &&
                      box.shape[d] <= global[d] - box.offset[d];
    if (!fits) return false;
  }
  return true;
}

std::optional<Box> intersection(const Box& a, const Box& b) {
  Box part{a.offset, a.shape};
  for (size_t d = 0; d < a.shape.size(); ++d) {
    const int64_t begin = std::max(a.offset[d], b.offset[d]);
    const int64_t end = std::min(a.offset[d] + a.shape[d], b.offset[d] + b.shape[d]);
    if (begin >= end) return std::nullopt;
    part.offset[d] = begin;
    part.shape[d] = end - begin;
  }
  return part;
}

void check_tiling(const Shape& global, const std::vector<Box>& boxes, const std::string& what) {
  const auto total = volume(global);
  if (!total) throw DataError("{}: impossible shape", what);
  if (boxes.size() > kMaxBoxes) throw DataError("{}: {} saved parts; at most {}", what, boxes.size(), kMaxBoxes);
  int64_t sum = 0;
  for (const auto& box : boxes) {
    if (!inside(box, global)) throw DataError("{}: a saved part lies outside the tensor", what);
    const int64_t size = *volume(box.shape);
    if (size > *total - sum)
      throw DataError("{}: its saved parts hold more elements than the tensor's {}", what, *total);
    sum += size;
  }
  if (sum != *total) throw DataError("{}: its saved parts hold {} of {} elements", what, sum, *total);
  check_disjoint(boxes, what);
}

void copy_part(const Box& part, BoxBytes<const std::byte> from, BoxBytes<std::byte> to, int64_t item) {
  Shape index = part.offset;
  const int64_t row = (part.shape.empty() ? 1 : part.shape.back()) * item;
  do {
    std::memcpy(to.bytes.data() + position(to.box, index) * item, from.bytes.data() + position(from.box, index) * item,
                static_cast<size_t>(row));
  } while (!index.empty() && next_row(part, index));
}

}  // namespace conclave::checkpoint
