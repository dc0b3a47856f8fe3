// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "core/random.h"
#include "cuda/device_runs.h"
#include "kernels/moe_device.h"
#include "kernels/rows.h"

namespace conclave::kernels {
namespace {

class DeviceSlotsTest : public DeviceTest {};

enum class Liking { kEvenly, kOneExpert, kFew };

// K different experts for each token (some of those the liking allows), every seventh token padding.
Tensor picks(int64_t tokens, int64_t experts, int64_t k, Liking liking) {
  const Random random(11, Purpose::kTest);
  Tensor ids_TK = at::empty({tokens, k}, at::kInt);
  int32_t* ids = ids_TK.mutable_data_ptr<int32_t>();
  const int64_t liked = liking == Liking::kEvenly      ? experts
                        : liking == Liking::kOneExpert ? k
                                                       : std::min(experts, 2 * k);
  std::vector<int32_t> order(static_cast<size_t>(liked));
  for (int64_t t = 0; t < tokens; ++t) {
    std::iota(order.begin(), order.end(), 0);
    for (int64_t j = 0; j < k; ++j) {
      const auto other = j + static_cast<int64_t>(random.bits(t * k + j) % static_cast<uint64_t>(liked - j));
      std::swap(order[j], order[other]);
      // The last experts are the liked ones, so that the first are empty.
      ids[t * k + j] = t % 7 == 5 ? -1 : static_cast<int32_t>(experts) - 1 - order[j];
    }
  }
  return ids_TK;
}

Tensor counts_of(const Tensor& ids_TK, int64_t experts) {
  Tensor counts = at::zeros({experts}, at::kInt);
  for (int64_t i = 0; i < ids_TK.numel(); ++i) {
    const int32_t id = ids_TK.const_data_ptr<int32_t>()[i];
    if (id >= 0) ++counts.mutable_data_ptr<int32_t>()[id];
  }
  return counts;
}

struct Size {
  int64_t tokens, experts, k;
};
// No token, one, one expert, k = E, several chunks of 4096 picks and a rest, 512 experts.
const std::vector<Size> kSlotSizes = {{0, 4, 2},    {1, 1, 1},    {1, 8, 8},      {33, 3, 3},
                                      {700, 64, 8}, {2100, 5, 2}, {1500, 512, 6}, {40, 512, 512}};

TEST_F(DeviceSlotsTest, SlotMapIsThatOfTheCpu) {
  for (const auto& [tokens, experts, k] : kSlotSizes) {
    for (const Liking liking : {Liking::kEvenly, Liking::kOneExpert, Liking::kFew}) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens, E" + std::to_string(experts) + " k" + std::to_string(k));
      const Tensor ids = picks(tokens, experts, k, liking), counts = counts_of(ids, experts);
      const auto results = run_on_device([&] {
        const SlotMap map = slot_map(to_device(ids), to_device(counts));
        return std::vector<Tensor>{map.ends_E, map.rows_N, map.picks_N, map.slots_TK};
      });
      const SlotMap map = slot_map(ids, counts);
      expect_same_bits(results[0], map.ends_E, "ends");
      expect_same_bits(results[1], map.rows_N, "rows");
      expect_same_bits(results[2], map.picks_N, "picks");
      expect_same_bits(results[3], map.slots_TK, "slots");
    }
  }
}

TEST_F(DeviceSlotsTest, AggregationSumsEachTokensRows) {
  for (const auto dtype : kDeviceTypes) {
    for (const auto& [tokens, experts, k] : kSlotSizes) {
      if (tokens * k > 6000) continue;
      const int64_t n = tokens % 2 == 0 ? 72 : 31;
      const Tensor ids = picks(tokens, experts, k, Liking::kEvenly);
      const SlotMap map = slot_map(ids, counts_of(ids, experts));
      const Tensor rows = random_tensor({tokens * k, n}, dtype, 1);
      const auto results = run_on_device([&, t = tokens] {
        Tensor y = at::empty({t, n}, to_device(rows).options());
        aggregate(to_device(rows), to_device(map.slots_TK), y);
        return std::vector<Tensor>{y};
      });
      Tensor y = at::empty({tokens, n}, at::kFloat);
      aggregate(rows.to(at::kFloat), map.slots_TK, y);
      expect_same_bits(results[0], y.to(dtype), "the CPU adds in the same order");
    }
  }
}

TEST_F(DeviceSlotsTest, ARowThatIsNotThereIsNan) {
  const Tensor rows = random_tensor({4, 8}, at::kFloat, 1), slots = index_tensor({0, 3, 1, 4, -1, 2}).view({3, 2});
  const auto results = run_on_device([&] {
    Tensor y = at::empty({3, 8}, to_device(rows).options());
    aggregate(to_device(rows), to_device(slots), y);
    return std::vector<Tensor>{y};
  });
  expect_same_bits(results[0][0], rows[0] + rows[3], "two rows");
  EXPECT_EQ(at::isnan(results[0][1]).sum().item<int64_t>(), 8);
  expect_same_bits(results[0][2], rows[2], "one row");
}

// Tokens out and back: what gather_rows does with a slot map, aggregate undoes, k times.
TEST_F(DeviceSlotsTest, GatherAndAggregateMeetAgain) {
  const Tensor ids = picks(50, 16, 4, Liking::kFew), x = random_tensor({50, 24}, at::kFloat, 1);
  const auto results = run_on_device([&] {
    const SlotMap map = slot_map(to_device(ids), to_device(counts_of(ids, 16)));
    const Tensor x_ = to_device(x);
    Tensor rows = at::empty({200, 24}, x_.options()), y = at::empty_like(x_);
    gather_rows(x_, map.rows_N, rows);
    aggregate(rows, map.slots_TK, y);
    return std::vector<Tensor>{y};
  });
  for (int64_t t = 0; t < 50; ++t) {
    expect_same_bits(results[0][t], t % 7 == 5 ? at::zeros({24}, at::kFloat) : x[t] * 4.0, "four times");
  }
}

}  // namespace
}  // namespace conclave::kernels
