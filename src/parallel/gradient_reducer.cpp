// SPDX-License-Identifier: Apache-2.0
#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "parallel/aligned_buffer.h"
#include "parallel/tree_reduce.h"

namespace conclave::parallel {
namespace {

// Counts the micro-batches of a step, so that a caller who does too few or too many is told.
class StepCounter {
 public:
  void begin(int64_t micro_batches, int64_t dp) {
    check(micro_batches > 0 && micro_batches % dp == 0, "dp divides the micro-batches of a step");
    left_ = micro_batches / dp;
  }
  void check_open(int64_t ahead = 0) const {
    check(left_ > ahead, "gradients are written between begin_step and the last micro_batch_done");
  }
  void done() {
    check_open();
    --left_;
  }
  int64_t left() const { return left_; }
  void finish() const { check(left_ == 0, "a step is finished after its last micro-batch"); }

 private:
  int64_t left_ = 0;
};

// Each share of the tokens is summed over all micro-batches, then the shares: so the bits do not depend on dp.
LeafOrder shares_first(const GradientLayout& layout) {
  if (layout.tp == 1) return {};
  LeafOrder order;
  const int64_t leaves = layout.expert.group().size() * layout.sources;
  for (int64_t share = 0; share < layout.tp; ++share)
    for (int64_t leaf = share; leaf < leaves; leaf += layout.tp) order.push_back(leaf);
  return order;
}

template <typename T>
typename TreeReduce<T>::Plan dense_plan(const GradientLayout& layout) {
  return {.parts = layout.dense,
          .everywhere = !layout.sharded,
          .as_bf16 = layout.as_bf16,
          .timeline = layout.timeline,
          .names = layout.dense_names};
}

template <typename T>
typename TreeReduce<T>::Plan expert_plan(const GradientLayout& layout, int64_t subtrees, LeafOrder order) {
  return {.parts = layout.expert,
          .everywhere = !layout.sharded,
          .subtrees = static_cast<int>(subtrees),
          .order = std::move(order),
          .as_bf16 = layout.as_bf16,
          .timeline = layout.timeline,
          .names = layout.expert_names};
}

template <typename T>
class CanonicalReducer : public GradientReducer<T> {
 public:
  explicit CanonicalReducer(const GradientLayout& layout)
      : dp_(layout.dense.group().size()),
        dense_parts_(layout.dense),
        expert_parts_(layout.expert),
        dense_(layout.dense.elements()),
        dense_sum_(dense_plan<T>(layout)),
        expert_sum_(expert_plan<T>(layout, layout.sources, shares_first(layout))) {
    for (int64_t source = 0; source < layout.sources; ++source) experts_.emplace_back(layout.expert.elements());
  }

  void begin_step(int64_t micro_batches) override {
    if (!tree_fits(micro_batches, dp_))
      throw ConfigError(
          "parallel.reduction: canonical needs a power of two of micro-batches per data-parallel rank, but {} "
          "micro-batches "
          "over dp {} do not give that; change train.global_batch_size, train.micro_batch_size or parallel.dp, or take "
          "reduction: fast",
          micro_batches, dp_);
    counter_.begin(micro_batches, dp_);
    dense_.begin();
    for (TreeAccumulator<T>& expert : experts_) expert.begin();
  }
  std::span<T> dense_gradient(int64_t ahead) override {
    counter_.check_open(ahead);
    return dense_.current(ahead);
  }
  std::span<T> expert_gradient(int64_t source, int64_t ahead) override {
    counter_.check_open(ahead);
    return experts_.at(source).current(ahead);
  }
  void micro_batch_done() override {
    counter_.done();
    dense_.push();
    for (TreeAccumulator<T>& expert : experts_) expert.push();
  }
  void complete(bool expert, size_t bucket) override {
    if (expert) {
      const int64_t begin = expert_parts_.buckets().at(bucket).front();
      std::vector<std::span<T>> subtrees;
      for (TreeAccumulator<T>& source : experts_) subtrees.push_back(all_begun(source).sum_from(begin));
      return expert_sum_.start(bucket, subtrees);
    }
    const std::span<T> subtree = all_begun(dense_).sum_from(dense_parts_.buckets().at(bucket).front());
    dense_sum_.start(bucket, std::span<const std::span<T>>(&subtree, 1));
  }
  void finish() override {
    counter_.finish();
    const std::span<T> subtree = dense_.finish();
    dense_result_ = dense_sum_.finish(std::span<const std::span<T>>(&subtree, 1));
    std::vector<std::span<T>> subtrees;
    for (TreeAccumulator<T>& expert : experts_) subtrees.push_back(expert.finish());
    expert_result_ = expert_sum_.finish(subtrees);
  }
  std::span<T> dense() override { return dense_result_; }
  std::span<T> expert() override { return expert_result_; }

 private:
  TreeAccumulator<T>& all_begun(TreeAccumulator<T>& tree) const {
    check(tree.under_way() == counter_.left(), "a bucket is complete after all micro-batches have begun");
    return tree;
  }

  int64_t dp_;
  Shards dense_parts_, expert_parts_;
  StepCounter counter_;
  TreeAccumulator<T> dense_;
  std::vector<TreeAccumulator<T>> experts_;  // by source
  TreeReduce<T> dense_sum_;
  TreeReduce<T> expert_sum_;
  std::span<T> dense_result_;
  std::span<T> expert_result_;
};

// One buffer of each kind, added to by all micro-batches, and its sum over the ranks that hold copies. The transport's
// own sum would not do: it has no bucket under way beside the computation, and its order depends on the place in the
// buffer, so tensor-parallel ranks with an uneven vocabulary would drift apart.
template <typename T>
class FastReducer : public GradientReducer<T> {
 public:
  explicit FastReducer(const GradientLayout& layout)
      : dp_(layout.dense.group().size()),
        sources_(layout.sources),
        dense_(layout.dense.elements()),
        expert_(layout.expert.elements()),
        dense_sum_(dense_plan<T>(layout)),
        expert_sum_(expert_plan<T>(layout, 1, {})) {}

  void begin_step(int64_t micro_batches) override {
    counter_.begin(micro_batches, dp_);
    fill_zero(dense_.span());
    fill_zero(expert_.span());
  }
  std::span<T> dense_gradient(int64_t ahead) override {
    counter_.check_open(ahead);
    return dense_.span();
  }
  std::span<T> expert_gradient(int64_t source, int64_t ahead) override {
    counter_.check_open(ahead);
    check(source >= 0 && source < sources_, "a source is a rank that shares the experts");
    return expert_.span();
  }
  void micro_batch_done() override { counter_.done(); }
  void complete(bool expert, size_t bucket) override {
    counter_.check_open();
    const std::span<T> all = expert ? expert_.span() : dense_.span();
    (expert ? expert_sum_ : dense_sum_).start(bucket, std::span<const std::span<T>>(&all, 1));
  }
  void finish() override {
    counter_.finish();
    const std::span<T> dense = dense_.span(), expert = expert_.span();
    dense_result_ = dense_sum_.finish(std::span<const std::span<T>>(&dense, 1));
    expert_result_ = expert_sum_.finish(std::span<const std::span<T>>(&expert, 1));
  }
  std::span<T> dense() override { return dense_result_; }
  std::span<T> expert() override { return expert_result_; }

 private:
  int64_t dp_;
  int64_t sources_;
  StepCounter counter_;
  AlignedBuffer<T> dense_, expert_;
  TreeReduce<T> dense_sum_, expert_sum_;
  std::span<T> dense_result_, expert_result_;
};

}  // namespace

template <typename T>
std::unique_ptr<GradientReducer<T>> make_gradient_reducer(Reduction reduction, const GradientLayout& layout) {
  check(layout.sources >= 1 && layout.dense.group().size() * layout.tp == layout.expert.group().size() * layout.sources,
        "dp * tp = edp * sources");
  check(!layout.as_bf16 || reduction == Reduction::kFast, "what is rounded for each rank depends on their number");
  if (reduction == Reduction::kCanonical) return std::make_unique<CanonicalReducer<T>>(layout);
  return std::make_unique<FastReducer<T>>(layout);
}

template class GradientReducer<float>;
template class GradientReducer<double>;
template std::unique_ptr<GradientReducer<float>> make_gradient_reducer<float>(Reduction, const GradientLayout&);
template std::unique_ptr<GradientReducer<double>> make_gradient_reducer<double>(Reduction, const GradientLayout&);

}  // namespace conclave::parallel
