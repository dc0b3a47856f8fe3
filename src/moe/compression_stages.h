// SPDX-License-Identifier: Apache-2.0
// The two stages around dispatch, experts and combine where similar rows travel as one (`moe.dispatch.compression`):
// Compress puts the means of buckets in the place of the tokens' rows, Expand makes the tokens' results of what came
// back. Between them every dispatcher and executor works as ever, on buckets for tokens, with gates of 1: a token's own
// gates apply at home. An evaluation has a bucket for each row.
#pragma once

#include "moe/compression.h"
#include "moe/decision.h"
#include "moe/row_buckets.h"
#include "nn/stage.h"

namespace conclave::moe {

struct CompressionSlots {
  nn::Slot input;     // x [T, D]
  nn::Slot weights;   // [N]
  nn::Slot decision;  // object: Decision
  nn::Slot buckets;   // object: RowBuckets
  // What takes the place of input, weights and decision for dispatch, and what came back.
  nn::Slot means;            // [B, D]
  nn::Slot ones;             // [B]
  nn::Slot bucket_decision;  // object: Decision with the routing alone
  nn::Slot results;          // [B, D]
  nn::Slot output;           // y [T, D]
};

class Compress : public nn::Stage {
 public:
  Compress(nn::StageSite site, std::unique_ptr<Compressor> compressor, CompressionSlots slots)
      : Stage(std::move(site)), compressor_(std::move(compressor)), slots_(slots) {}
  std::vector<nn::Slot> inputs() const override { return {slots_.input, slots_.decision}; }
  std::vector<nn::Slot> outputs() const override {
    return {slots_.buckets, slots_.means, slots_.ones, slots_.bucket_decision};
  }
  bool backward_reads_inputs() const override { return false; }
  nn::Redo redo() const override { return nn::Redo::kSelective; }
  void forward(nn::Frame& frame) override;
  void forward_again(nn::Frame& frame) override;  // the buckets stay
  void backward_input(nn::Frame& frame) override;

 private:
  std::unique_ptr<Compressor> compressor_;
  CompressionSlots slots_;
};

class Expand : public nn::Stage {
 public:
  Expand(nn::StageSite site, CompressionSlots slots) : Stage(std::move(site)), slots_(slots) {}
  std::vector<nn::Slot> inputs() const override {
    return {slots_.input, slots_.weights, slots_.decision, slots_.buckets, slots_.means, slots_.results};
  }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;

 private:
  Expansion values(nn::Frame& frame) const;

  CompressionSlots slots_;
};

}  // namespace conclave::moe
