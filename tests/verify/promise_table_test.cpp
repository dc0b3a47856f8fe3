// SPDX-License-Identifier: Apache-2.0
// The table of docs/numerics.md ("What is promised"), row by row: every dp of 1, 2, 4, 8, with and without sharded
// optimizer state, every ep, dispatcher and executor against one rank. Each row prints itself with the largest
// differences that were measured; tools/dev/promise_table makes the page's table of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "config/fields.h"
#include "support/ranks.h"
#include "verify/models.h"
#include "verify/report.h"

namespace conclave::test {
namespace {

using moe::DispatchPayload;
using moe::DispatchType;
using parallel::ExecutorType;
using parallel::Reduction;
using verify::Layout;
using verify::Promise;
using verify::Quantity;

// Router statistics of every kind, a bias, drops, a shared expert: whatever a layout could get wrong.
train::RunConfig everything_model() {
  auto config = softmax_aux_model();
  config.moe.top_k = 3;  // of two terms every order of adding has the same bits
  config.model.num_key_value_heads = 4;
  config.model.max_seq_len = config.data.seq_len = 16;
  config.moe.balance.bias.update_rate = 0.01;
  config.moe.capacity.factor = 1.0;
  config.moe.capacity.min = 1;
  config.moe.num_shared_experts = 1;
  return verify::with_divisible_batch(config, 8);
}

constexpr std::array kKeepBits = {DispatchType::kLocal, DispatchType::kAllToAll, DispatchType::kShared};
constexpr std::array kAddFirst = {DispatchType::kHierarchical, DispatchType::kAllGather};

bool fits(DispatchType dispatch, int64_t ep) { return (dispatch == DispatchType::kLocal) == (ep == 1); }

// Layouts of dp 1, 2, 4, 8 and ep 1, 2, 4, with each of zero, one dispatcher after the other.
std::vector<Layout> layouts_of(std::span<const DispatchType> dispatchers, const Layout& plain) {
  std::vector<Layout> all;
  for (const int64_t dp : {1, 2, 4, 8})
    for (const int64_t ep : {1, 2, 4})
      for (const DispatchType dispatch : dispatchers)
        for (const int64_t zero : {0, 1}) {
          if (dp % ep != 0 || !fits(dispatch, ep) || (dp == 1 && zero == 1)) continue;
          Layout layout = plain;
          layout.dp = dp, layout.ep = ep, layout.dispatch = dispatch, layout.zero = zero;
          all.push_back(layout);
        }
  return all;
}

using Layouts = std::vector<Layout>;

Layouts joined(std::initializer_list<Layouts> lists) {
  Layouts all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

Layouts of_reduction(Layouts layouts, Reduction reduction) {
  for (auto& layout : layouts) layout.reduction = reduction;
  return layouts;
}

struct PromiseRow {
  std::string name, change;
  Promise promise;
  Reduction reduction;
  Layouts layouts;
  bool two_hosts = false;  // ranks are on two, half of them on each
};

Layouts basic() {
  return joined({layouts_of(kKeepBits, {}), layouts_of(kKeepBits, {.executor = ExecutorType::kInterleaved})});
}

// What is kept for backward, and what is made or sent again; not for every dp, which has nothing to do with it.
Layouts remade() {
  Layouts all;
  for (Layout layout : {Layout{.dispatch = DispatchType::kLocal},
                        Layout{.dp = 4, .ep = 2, .dispatch = DispatchType::kAllToAll, .zero = 1},
                        Layout{.dp = 4, .ep = 4, .dispatch = DispatchType::kShared}})
    for (const auto executor : {ExecutorType::kSequential, ExecutorType::kInterleaved})
      for (const auto rows : {moe::BackwardRows::kKeep, moe::BackwardRows::kResend})
        for (const auto recompute : {model::Recompute::kNone, model::Recompute::kSelective, model::Recompute::kFull}) {
          layout.executor = executor, layout.backward_rows = rows, layout.recompute = recompute;
          all.push_back(layout);
        }
  return all;
}

Layouts partial_sums() {
  Layouts all;
  for (const auto executor : {ExecutorType::kSequential, ExecutorType::kInterleaved, ExecutorType::kChunked})
    all = joined({all, layouts_of(kAddFirst, {.executor = executor})});
  return all;
}

Layouts tensor_parallel(bool expert_parts) {
  Layouts all;
  for (const int64_t dp : {1, 2, 4})
    for (const int64_t ep : {1, 2, 4})
      for (const int64_t zero : {0, 1})
        for (const bool shared_out : {true, false}) {
          const int64_t etp = expert_parts ? 2 : 1;
          if ((2 * dp) % (ep * etp) != 0 || (dp == 1 && zero == 1)) continue;
          all.push_back({.dp = dp, .ep = ep, .dispatch = DispatchType::kAllToAll, .zero = zero, .tp = 2, .etp = etp});
          all.back().sequence_parallel = shared_out;
          if (ep == 1) all.back().dispatch = DispatchType::kLocal;
        }
  return all;
}

Layouts rounded(DispatchPayload payload) {
  Layouts all;
  for (const auto dispatch : {DispatchType::kAllToAll, DispatchType::kHierarchical, DispatchType::kAllGather})
    for (const auto& layout :
         joined({layouts_of({&dispatch, 1}, {.payload = payload}),
                 layouts_of({&dispatch, 1}, {.executor = ExecutorType::kInterleaved, .payload = payload})}))
      all.push_back(layout);
  return all;
}

std::vector<PromiseRow> promise_rows() {
  const auto in_pieces = [] { return layouts_of(kKeepBits, {.executor = ExecutorType::kChunked}); };
  const std::string dp = "dp, ep, `zero`; `local`, `alltoall`, `shared`; `sequential`, `interleaved`";
  const std::string again = "`backward_rows`, `recompute`; `sequential`, `interleaved`";
  const std::string sums = "dispatch `hierarchical`, `allgather`, on two hosts; every executor";
  std::vector<PromiseRow> rows;
  const auto add = [&](const std::string& name, const std::string& change, Promise canonical, const Layouts& layouts) {
    rows.push_back({name + "Canonical", change, canonical, Reduction::kCanonical, layouts});
    const auto fast = canonical == Promise::kBitwise ? Promise::kClose : canonical;
    rows.push_back({name + "Fast", change, fast, Reduction::kFast, of_reduction(layouts, Reduction::kFast)});
  };
  add("Basic", dp, Promise::kBitwise, basic());
  add("Remade", again, Promise::kBitwise, remade());
  add("PartialSums", sums, Promise::kClose, partial_sums());
  for (auto row = rows.end() - 2; row != rows.end(); ++row) row->two_hosts = true;
  add("Chunked", "executor `chunked`; `local`, `alltoall`, `shared`", Promise::kClose, in_pieces());
  add("ExpertParts", "etp 2 with tp 2; `sequence_parallel`", Promise::kClose, tensor_parallel(true));
  add("Tensor", "tp 2; `sequence_parallel`", Promise::kClose, tensor_parallel(false));
  for (const auto payload : {DispatchPayload::kBf16, DispatchPayload::kFp8}) {
    const bool fp8 = payload == DispatchPayload::kFp8;
    add(fp8 ? "PayloadFp8" : "Payload",
        fmt::format("payload `{}`, on two hosts; `alltoall`, `hierarchical`, `allgather`", config::enum_name(payload)),
        Promise::kMeasured, rounded(payload));
  }
  return rows;
}

verify::RunRanks runner(bool two_hosts) {
  return [two_hosts](int ranks, const std::function<void(const comm::Group&)>& body) {
    std::vector<int> hosts(ranks, 0);
    if (two_hosts) std::fill(hosts.begin() + ranks / 2, hosts.end(), 1);
    run_ranks_on(hosts, body);
  };
}

// The largest of a row, as the page has it.
std::string cell(const std::vector<verify::Row>& rows, Quantity quantity) {
  double largest = 0;
  bool same = true;
  for (const auto& row : rows) {
    const auto* measure = row.find(quantity);
    if (measure == nullptr) continue;
    same &= measure->same_bits;
    largest = std::max(largest, measure->difference);
  }
  return same ? "=" : fmt::format("{:.1e}", largest);
}

void print_row(const PromiseRow& row, const std::vector<verify::Row>& rows) {
  const char* promise = row.promise == Promise::kBitwise ? "same bits"
                        : row.promise == Promise::kClose ? "1e-5"
                                                         : "none";
  fmt::print("| {} | {} | {} | {} | {} | {} | {} |\n", row.change, config::enum_name(row.reduction), promise,
             rows.size(), cell(rows, Quantity::kLoss), cell(rows, Quantity::kNorm), cell(rows, Quantity::kGradient));
  std::fflush(stdout);
}

class PromiseTableRanks : public ::testing::TestWithParam<PromiseRow> {};

TEST_P(PromiseTableRanks, Holds) {
  const PromiseRow& expected = GetParam();
  const verify::LayoutPlan plan{
      .reference = {.dispatch = DispatchType::kLocal}, .layouts = expected.layouts, .skipped = {}};
  // More than one step only where a layout goes on from its own state.
  const verify::VerifyOptions options{.ranks = 8, .steps = expected.promise == Promise::kBitwise ? 2 : 1};
  std::vector<verify::Row> rows;
  verify::verify(everything_model(), plan, options, runner(expected.two_hosts),
                 [&](const verify::Row& row) { rows.push_back(row); });
  ASSERT_EQ(rows.size(), expected.layouts.size());
  for (const auto& row : rows) {
    SCOPED_TRACE(fmt::format("\n{}", verify::row_text(row)));
    EXPECT_EQ(row.promise, expected.promise);
    EXPECT_FALSE(row.first.has_value());
    EXPECT_TRUE(row.judged);
    EXPECT_TRUE(row.find(Quantity::kCounts)->same_bits);
    EXPECT_TRUE(row.find(Quantity::kDrops)->same_bits);
    if (expected.promise != Promise::kMeasured) continue;
    // Eight bits of each row, or four; and it must have happened.
    const double bits = row.layout.payload == DispatchPayload::kFp8 ? 16 : 1;
    EXPECT_GT(row.find(Quantity::kGradient)->difference, bits * 1e-4);
    EXPECT_LT(row.find(Quantity::kGradient)->difference, std::min(0.5, bits * 0.1));
    EXPECT_LT(row.find(Quantity::kLoss)->difference, bits * 1e-2);
  }
  print_row(expected, rows);
}

INSTANTIATE_TEST_SUITE_P(All, PromiseTableRanks, ::testing::ValuesIn(promise_rows()),
                         [](const auto& info) { return info.param.name; });

// Which cells there are: a loop that leaves some out would go unnoticed.
TEST(PromiseTable, HasEveryCell) {
  const auto has = [](const Layouts& layouts, const Layout& wanted) {
    return std::find(layouts.begin(), layouts.end(), wanted) != layouts.end();
  };
  int64_t cells = 0;
  for (const int64_t dp : {1, 2, 4, 8})
    for (const int64_t ep : {1, 2, 4})
      for (const int64_t zero : {0, 1})
        for (const auto executor : {ExecutorType::kSequential, ExecutorType::kInterleaved, ExecutorType::kChunked})
          for (const auto dispatch : {DispatchType::kLocal, DispatchType::kAllToAll, DispatchType::kShared,
                                      DispatchType::kHierarchical, DispatchType::kAllGather}) {
            const bool local = dispatch == DispatchType::kLocal;
            if (dp % ep != 0 || local != (ep == 1) || (dp == 1 && zero == 1)) continue;
            const Layout cell{.dp = dp, .ep = ep, .dispatch = dispatch, .executor = executor, .zero = zero};
            EXPECT_TRUE(has(
                joined({basic(), partial_sums(), layouts_of(kKeepBits, {.executor = ExecutorType::kChunked})}), cell))
                << name_of(cell);
            ++cells;
          }
  EXPECT_EQ(cells, 21 + 120);
}

}  // namespace
}  // namespace conclave::test
