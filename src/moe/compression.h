// SPDX-License-Identifier: Apache-2.0
// Which rows are alike enough to travel as one (`moe.dispatch.compression`): one file for each method in compressors/,
// one row in the table in compression.cpp. What becomes of them is in row_buckets.h; it knows neither experts nor
// ranks. All of it happens in training alone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "moe/method.h"
#include "moe/moe_config.h"

namespace conclave::moe {

// What a method's randomness is keyed by, equal on all ranks and in all steps, and the width of a row.
struct CompressionSite {
  uint64_t seed = 1;
  int layer = 0;  // among the MoE layers
  int64_t width = 0;
};

class Compressor {
 public:
  virtual ~Compressor() = default;
  // A number below T for each row: rows of one number and one expert travel as their mean. Equal rows have one number;
  // whether two rows have one depends on these two alone.
  virtual std::vector<int32_t> classes(const Tensor& x_TD) const = 0;

  struct Row {
    CompressionType type;
    MethodInfo info;
    std::unique_ptr<Compressor> (*make)(const CompressionConfig& config, const CompressionSite& site);
  };
  static std::span<const Row> table();
  static const Row& row(CompressionType type);
  static std::unique_ptr<Compressor> make(const CompressionConfig& config, const CompressionSite& site) {
    return row(config.type).make(config, site);
  }
};

}  // namespace conclave::moe
