// SPDX-License-Identifier: Apache-2.0
// Buckets: consecutive parts of the flat parameter buffers that travel at a time, because their weights are first
// needed, and their gradients complete, at about the same time: those of one block, of the experts of one block, of
// what is before and after the blocks. Planned once from what the stages say they use; knows neither ranks nor
// transfers.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "model/gradient_norm.h"
#include "nn/stage.h"
#include "parallel/shards.h"

namespace conclave::model {

struct Bucket {
  int64_t begin = 0, end = 0;
  std::string name;                 // "layers.3 experts", for people
  std::vector<size_t> stages = {};  // that use its parameters, ascending
};

// Of the dense buffer and of the experts'; at least one each, from the first element to the last.
struct Buckets {
  std::vector<Bucket> dense, expert;
  const std::vector<Bucket>& operator[](bool of_expert) const { return of_expert ? expert : dense; }
  std::vector<std::string> names(bool of_expert) const;
};

struct BucketId {
  bool expert = false;
  size_t index = 0;
  bool operator==(const BucketId&) const = default;
};

// So many elements travel at a time at most, so that the links are busy while the first are being added.
inline constexpr int64_t kMostBucketElements = int64_t{4} << 20;

// Larger parts are cut between slices of the gradient norm.
Buckets plan_buckets(const nn::Parameters& parameters, const std::vector<std::unique_ptr<nn::Stage>>& stages,
                     int64_t most_elements = kMostBucketElements);

// Shards of each bucket over the ranks that hold copies, cut between slices of the gradient norm.
parallel::Shards shards_of(const Buckets& buckets, const nn::Parameters& parameters, bool expert,
                           const comm::Group& copies);

// Every bucket that has elements, in the order in which forward first uses them.
std::vector<BucketId> first_use_order(const Buckets& buckets);

// Which buckets nobody adds gradients to any more in this step. The first dense one is left out: what ends last has
// nothing left to run beside it.
class BucketProgress {
 public:
  // `buckets` outlives it.
  BucketProgress(const Buckets& buckets, size_t stages);
  void begin_step(int64_t micro_batches);
  // A stage has written the weight gradients of one micro-batch. Returns what is complete by that, of either kind from
  // the last bucket on.
  std::vector<BucketId> written(size_t stage);
  // From this element of the buffer on everything has been returned.
  int64_t complete_from(bool expert) const;

 private:
  const Buckets& buckets_;
  std::array<std::vector<std::vector<size_t>>, 2> of_stage_;  // [expert][stage]: the buckets it writes to
  std::array<std::vector<int64_t>, 2> missing_;               // [expert][bucket]: writes to come
  std::array<size_t, 2> left_{};                              // buckets not yet returned
};

}  // namespace conclave::model
