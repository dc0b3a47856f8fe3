// SPDX-License-Identifier: Apache-2.0
#include "train/weight_gather.h"

#include <algorithm>

namespace conclave::train {

WeightGather::WeightGather(const model::Buckets& buckets, const model::Ownership& owned, nn::Parameters& parameters,
                           size_t stages, Timeline& timeline)
    : owned_(owned), parameters_(parameters), timeline_(timeline), needed_(stages, 0) {
  for (const model::BucketId& id : model::first_use_order(buckets)) {
    if (owned_[id.expert].group().size() == 1) continue;
    const model::Bucket& bucket = buckets[id.expert][id.index];
    order_.push_back(id);
    names_.push_back(bucket.name);
    for (const size_t stage : bucket.stages) needed_[stage] = order_.size();
  }
  started_ = finished_ = order_.size();
}

void WeightGather::start() {
  finish();
  started_ = finished_ = 0;
  while (started_ < std::min(parallel::kBucketsUnderWay, order_.size())) start_next();
}

void WeightGather::wait_for(size_t stage) {
  while (finished_ < needed_[stage]) finish_next();
}

void WeightGather::finish() {
  while (finished_ < order_.size()) finish_next();
}

void WeightGather::start_next() {
  const model::BucketId id = order_[started_++];
  Tensor& all = parameters_.flat(id.expert);
  const std::span<float> whole(all.mutable_data_ptr<float>(), all.numel());
  under_way_.push_back({owned_[id.expert].start_gather(id.index, whole), timeline_.on() ? timeline_.now() : 0});
}

void WeightGather::finish_next() {
  under_way_.front().work.finish();
  // One that began before the timeline would have no beginning.
  if (timeline_.on() && under_way_.front().began > 0)
    timeline_.add({.name = names_[finished_],
                   .phase = "weights",
                   .exchange = true,
                   .begin = under_way_.front().began,
                   .end = timeline_.now()});
  under_way_.pop_front();
  ++finished_;
  if (started_ < order_.size()) start_next();
}

}  // namespace conclave::train
