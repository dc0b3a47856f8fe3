// SPDX-License-Identifier: Apache-2.0
// A fixed piece of memory for numbers, on a 64-byte boundary: bits of vector loops may depend on where an array starts.
// Not initialised.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <span>

namespace conclave::parallel {

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t elements)
      : data_(static_cast<T*>(::operator new(elements * sizeof(T), kAlignment))), elements_(elements) {}
  std::span<T> span() const { return {data_.get(), static_cast<size_t>(elements_)}; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Release> data_;
  int64_t elements_ = 0;
};

}  // namespace conclave::parallel
