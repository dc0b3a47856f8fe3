// SPDX-License-Identifier: Apache-2.0
#include "parallel/gradient_reducer.h"

#include <algorithm>
#include <optional>
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
  void finish() const { check(left_ == 0, "a step is finished after its last micro-batch"); }

 private:
  int64_t left_ = 0;
};

// Each share of the tokens is summed over all micro-batches, then the shares: so the bits do not depend on dp.
LeafOrder shares_first(const GradientLayout& layout) {
  if (layout.tp == 1) return {};
  LeafOrder order;
  const int64_t leaves = layout.edp.size() * layout.sources;
  for (int64_t share = 0; share < layout.tp; ++share)
    for (int64_t leaf = share; leaf < leaves; leaf += layout.tp) order.push_back(leaf);
  return order;
}

template <typename T>
class CanonicalReducer : public GradientReducer<T> {
 public:
  explicit CanonicalReducer(const GradientLayout& layout)
      : dp_(layout.dp.size()),
        dense_(layout.dense.elements()),
        dense_sum_(layout.dp, layout.dense, 1),
        expert_sum_(layout.edp, layout.expert, static_cast<int>(layout.sources), shares_first(layout)) {
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
  void finish() override {
    counter_.finish();
    const std::span<T> subtree = dense_.finish();
    dense_result_ = dense_sum_.run(std::span<const std::span<T>>(&subtree, 1));
    std::vector<std::span<T>> subtrees;
    for (TreeAccumulator<T>& expert : experts_) subtrees.push_back(expert.finish());
    expert_result_ = expert_sum_.run(subtrees);
  }
  std::span<T> dense() override { return dense_result_; }
  std::span<T> expert() override { return expert_result_; }

 private:
  int64_t dp_;
  StepCounter counter_;
  TreeAccumulator<T> dense_;
  std::vector<TreeAccumulator<T>> experts_;  // by source
  TreeReduce<T> dense_sum_;
  TreeReduce<T> expert_sum_;
  std::span<T> dense_result_;
  std::span<T> expert_result_;
};

// One buffer, added to by all micro-batches, and its sum over the ranks that hold copies.
template <typename T>
class FastSum {
 public:
  // `tp` ranks hold the same weights in groups of their own, at other places of buffers of other sizes where the
  // vocabulary is uneven: the transport's order, which depends on the place, would let them drift apart.
  FastSum(const comm::Group& group, const Shards& owned, int64_t tp)
      : group_(group), owned_(owned), buffer_(owned.elements()) {
    if (owned.group().size() > 1 || tp > 1) sum_.emplace(group, owned, 1);
  }
  std::span<T> buffer() const { return buffer_.span(); }
  std::span<T> own() const { return owned_.own(buffer()); }
  void run() {
    const std::span<T> all = buffer();
    if (sum_) {
      sum_->run(std::span<const std::span<T>>(&all, 1));
    } else {
      group_.all_reduce(all);
    }
  }

 private:
  comm::Group group_;
  Shards owned_;
  AlignedBuffer<T> buffer_;
  std::optional<TreeReduce<T>> sum_;  // where ranks own shards or tp asks; else the transport's
};

template <typename T>
class FastReducer : public GradientReducer<T> {
 public:
  explicit FastReducer(const GradientLayout& layout)
      : dp_(layout.dp.size()),
        sources_(layout.sources),
        dense_(layout.dp, layout.dense, layout.tp),
        expert_(layout.edp, layout.expert, layout.tp) {}

  void begin_step(int64_t micro_batches) override {
    counter_.begin(micro_batches, dp_);
    fill_zero(dense_.buffer());
    fill_zero(expert_.buffer());
  }
  std::span<T> dense_gradient(int64_t ahead) override {
    counter_.check_open(ahead);
    return dense_.buffer();
  }
  std::span<T> expert_gradient(int64_t source, int64_t ahead) override {
    counter_.check_open(ahead);
    check(source >= 0 && source < sources_, "a source is a rank that shares the experts");
    return expert_.buffer();
  }
  void micro_batch_done() override { counter_.done(); }
  void finish() override {
    counter_.finish();
    dense_.run();
    expert_.run();
  }
  std::span<T> dense() override { return dense_.own(); }
  std::span<T> expert() override { return expert_.own(); }

 private:
  int64_t dp_;
  int64_t sources_;
  StepCounter counter_;
  FastSum<T> dense_;
  FastSum<T> expert_;
};

}  // namespace

template <typename T>
std::unique_ptr<GradientReducer<T>> make_gradient_reducer(Reduction reduction, const GradientLayout& layout) {
  check(layout.sources >= 1 && layout.dp.size() * layout.tp == layout.edp.size() * layout.sources,
        "dp * tp = edp * sources");
  if (reduction == Reduction::kCanonical) return std::make_unique<CanonicalReducer<T>>(layout);
  return std::make_unique<FastReducer<T>>(layout);
}

template class GradientReducer<float>;
template class GradientReducer<double>;
template std::unique_ptr<GradientReducer<float>> make_gradient_reducer<float>(Reduction, const GradientLayout&);
template std::unique_ptr<GradientReducer<double>> make_gradient_reducer<double>(Reduction, const GradientLayout&);

}  // namespace conclave::parallel
