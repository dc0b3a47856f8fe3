// SPDX-License-Identifier: Apache-2.0
#include "model/buckets.h"

#include <algorithm>

#include "core/error.h"
#include "model/stage_memory.h"

namespace conclave::model {
namespace {

using Stages = std::vector<std::unique_ptr<nn::Stage>>;

// By parameter: the stages that use it, ascending.
std::vector<std::vector<size_t>> users_of(const nn::Parameters& parameters, const Stages& stages) {
  std::vector<std::vector<size_t>> users(parameters.all().size());
  for (size_t s = 0; s < stages.size(); ++s)
    for (const nn::ParameterId id : stages[s]->parameters()) users.at(id).push_back(s);
  for (size_t p = 0; p < users.size(); ++p)
    check(!users[p].empty(), "every parameter is used by a stage: nobody would wait for its gradient");
  return users;
}

void add_users(Bucket& bucket, const std::vector<size_t>& users) {
  bucket.stages.insert(bucket.stages.end(), users.begin(), users.end());
  std::sort(bucket.stages.begin(), bucket.stages.end());
  bucket.stages.erase(std::unique(bucket.stages.begin(), bucket.stages.end()), bucket.stages.end());
}

// Places of `starts` inside of [begin, end), counted from begin.
std::vector<int64_t> places_in(const std::vector<int64_t>& starts, int64_t begin, int64_t end) {
  std::vector<int64_t> places;
  for (auto at = std::lower_bound(starts.begin(), starts.end(), begin); at != starts.end() && *at < end; ++at)
    places.push_back(*at - begin);
  return places;
}

std::vector<Bucket> cut(const std::vector<Bucket>& whole, const std::vector<int64_t>& starts, int64_t most) {
  std::vector<Bucket> pieces;
  for (const Bucket& bucket : whole) {
    const int64_t elements = bucket.end - bucket.begin;
    const auto count = static_cast<int>(std::max<int64_t>(1, (elements + most - 1) / most));
    const auto cuts = parallel::cuts_at(places_in(starts, bucket.begin, bucket.end), elements, count);
    for (int i = 0; i < count; ++i)
      if (cuts[i] < cuts[i + 1] || count == 1)
        pieces.push_back({bucket.begin + cuts[i], bucket.begin + cuts[i + 1], bucket.name, bucket.stages});
  }
  return pieces;
}

}  // namespace

std::vector<std::string> Buckets::names(bool of_expert) const {
  std::vector<std::string> names;
  for (const Bucket& bucket : (*this)[of_expert]) names.push_back(bucket.name);
  return names;
}

Buckets plan_buckets(const nn::Parameters& parameters, const Stages& stages, int64_t most_elements) {
  const auto users = users_of(parameters, stages);
  Buckets buckets;
  for (const bool expert : {false, true}) {
    std::vector<Bucket> blocks;
    std::string block;
    for (size_t p = 0; p < users.size(); ++p) {
      const nn::Parameter& parameter = parameters.all()[p];
      if (parameter.expert != expert) continue;
      const nn::Stage& first = *stages[users[p].front()];
      if (blocks.empty() || block_of(first) != block) {
        block = block_of(first);
        if (!blocks.empty()) blocks.back().end = parameter.offset;
        const std::string name = block.empty() ? first.name() : block;
        blocks.push_back({.begin = parameter.offset, .name = expert ? name + " experts" : name});
      }
      add_users(blocks.back(), users[p]);
    }
    if (blocks.empty()) blocks.push_back({.name = expert ? "experts" : "dense"});
    blocks.back().end = parameters.flat_size(expert);
    (expert ? buckets.expert : buckets.dense) = cut(blocks, norm_slice_starts(parameters, expert), most_elements);
  }
  return buckets;
}

parallel::Shards shards_of(const Buckets& buckets, const nn::Parameters& parameters, bool expert,
                           const comm::Group& copies) {
  const auto starts = norm_slice_starts(parameters, expert);
  parallel::EvenCuts even(copies.size());
  std::vector<parallel::Shards::Cuts> all;
  for (const Bucket& bucket : buckets[expert]) {
    auto& cuts = all.emplace_back(even.next(places_in(starts, bucket.begin, bucket.end), bucket.end - bucket.begin));
    for (int64_t& at : cuts) at += bucket.begin;
  }
  return parallel::Shards(copies, std::move(all));
}

std::vector<BucketId> first_use_order(const Buckets& buckets) {
  std::vector<BucketId> order;
  for (const bool expert : {false, true})
    for (size_t b = 0; b < buckets[expert].size(); ++b)
      if (buckets[expert][b].begin < buckets[expert][b].end) order.push_back({expert, b});
  std::stable_sort(order.begin(), order.end(), [&](const BucketId& a, const BucketId& b) {
    return buckets[a.expert][a.index].stages.front() < buckets[b.expert][b.index].stages.front();
  });
  return order;
}

BucketProgress::BucketProgress(const Buckets& buckets, size_t stages) : buckets_(buckets) {
  for (const bool expert : {false, true}) {
    of_stage_[expert].resize(stages);
    for (size_t b = 0; b < buckets[expert].size(); ++b)
      for (const size_t stage : buckets[expert][b].stages) of_stage_[expert][stage].push_back(b);
  }
  begin_step(0);
}

void BucketProgress::begin_step(int64_t micro_batches) {
  for (const bool expert : {false, true}) {
    missing_[expert].clear();
    for (const Bucket& bucket : buckets_[expert]) missing_[expert].push_back(micro_batches * std::ssize(bucket.stages));
    const bool empty = buckets_[expert].back().end == 0;  // a model without experts
    left_[expert] = empty ? 0 : buckets_[expert].size();
  }
}

std::vector<BucketId> BucketProgress::written(size_t stage) {
  std::vector<BucketId> complete;
  for (const bool expert : {false, true}) {
    for (const size_t b : of_stage_[expert][stage]) --missing_[expert][b];
    const size_t last = expert ? 0 : 1;
    for (size_t& left = left_[expert]; left > last && missing_[expert][left - 1] == 0; --left)
      complete.push_back({expert, left - 1});
  }
  return complete;
}

int64_t BucketProgress::complete_from(bool expert) const {
  const auto& all = buckets_[expert];
  return left_[expert] == all.size() ? all.back().end : all[left_[expert]].begin;
}

}  // namespace conclave::model
