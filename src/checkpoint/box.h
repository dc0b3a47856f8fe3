// SPDX-License-Identifier: Apache-2.0
// Axis-aligned boxes in a tensor's global coordinates: what a rank holds, what a file holds, and what the two share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace conclave::checkpoint {

using Shape = std::vector<int64_t>;

struct Box {
  Shape offset;
  Shape shape;
  bool operator==(const Box&) const = default;
};

// Elements; nothing if a dimension is negative or the product passes 2^62.
std::optional<int64_t> volume(std::span<const int64_t> shape);
// Whether the box lies inside [0, global) in every dimension; false too where the number of dimensions differs.
bool inside(const Box& box, const Shape& global);
// Nothing if they share no element. Both have the same number of dimensions.
std::optional<Box> intersection(const Box& a, const Box& b);
// The elements [begin, end) of a tensor in row-major order as boxes that follow each other in memory: the rest of a
// row, whole rows, the start of a row, in each dimension. At most 2 * dimensions - 1; none for an empty range.
std::vector<Box> boxes_of_range(const Shape& global, int64_t begin, int64_t end);
// Throws DataError, naming `what`, unless the boxes cover [0, global) exactly once.
void check_tiling(const Shape& global, const std::vector<Box>& boxes, const std::string& what);

// A box with its bytes, row-major and contiguous.
template <typename Byte>
struct BoxBytes {
  const Box& box;
  std::span<Byte> bytes;
};
// Copies the elements of `part`, which lies in both boxes.
void copy_part(const Box& part, BoxBytes<const std::byte> from, BoxBytes<std::byte> to, int64_t item);

}  // namespace conclave::checkpoint
