// SPDX-License-Identifier: Apache-2.0
// Shared memory of ranks that are threads: plain memory, which lives until the last rank has dropped it. Private to the
// transports.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "comm/group.h"

namespace conclave::comm {

inline constexpr std::align_val_t kOwnedAlignment{64};

struct OwnedBytes {
  explicit OwnedBytes(int64_t size)
      : data(static_cast<std::byte*>(::operator new(size, kOwnedAlignment))), bytes(size) {
    std::memset(data, 0, static_cast<size_t>(size));
  }
  OwnedBytes(const OwnedBytes&) = delete;
  OwnedBytes& operator=(const OwnedBytes&) = delete;
  ~OwnedBytes() { ::operator delete(data, kOwnedAlignment); }

  std::byte* data;
  int64_t bytes;
};

inline std::shared_ptr<OwnedBytes> make_owned_bytes(int64_t bytes) { return std::make_shared<OwnedBytes>(bytes); }

class PrivateMemory : public SharedMemory {
 public:
  explicit PrivateMemory(std::vector<std::shared_ptr<OwnedBytes>> all) : all_(std::move(all)) {}
  std::span<std::byte> region(int rank) const override {
    return {all_[rank]->data, static_cast<size_t>(all_[rank]->bytes)};
  }

 private:
  std::vector<std::shared_ptr<OwnedBytes>> all_;
};

}  // namespace conclave::comm
