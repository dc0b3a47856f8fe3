// SPDX-License-Identifier: Apache-2.0
#include "kernels/rows.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {

void gather_rows(const Tensor& src_TD, std::span<const int32_t> rows, Tensor& dst_ND) {
  if (is_bf16(src_TD)) return rounded(dst_ND, [&](Tensor& dst) { gather_rows(wide(src_TD), rows, dst); });
  const char* name = "gather_rows";
  check_tensors(name, {{src_TD, "src_TD"}, {dst_ND, "dst_ND"}});
  check_dimensions(name, {src_TD, "src_TD"}, 2);
  const int64_t tokens = src_TD.size(0), n = src_TD.size(1), count = static_cast<int64_t>(rows.size());
  check_sizes(name, {dst_ND, "dst_ND"}, {count, n});
  for (const int32_t row : rows) check_index(name, "rows", std::max(row, 0), std::max<int64_t>(tokens, row < 0));
  with_type(src_TD, [&](auto zero) {
    using T = decltype(zero);
    const T* src = src_TD.const_data_ptr<T>();
    T* dst = dst_ND.mutable_data_ptr<T>();
    for_rows(count, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (rows[i] < 0) {
          std::fill_n(dst + i * n, n, T{0});
        } else {
          std::copy_n(src + rows[i] * n, n, dst + i * n);
        }
      }
    });
  });
}

void gather_rows(const Tensor& src_TD, const Tensor& rows_N, Tensor& dst_ND) {
  if (on_device(src_TD)) return gather_rows_on_device(src_TD, rows_N, dst_ND);
  gather_rows(src_TD, elements<int32_t>(rows_N), dst_ND);
}

namespace {

// How many rows ahead a sum asks memory for: rows lie far apart, and hardware prefetchers stop at the end of a page.
constexpr int32_t kRowsAhead = 2;

template <typename T>
void prefetch_row(const T* row, int64_t n) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < n; i += line) __builtin_prefetch(row + i);
}

// y[t] (+)= row(offsets[t]) + ... in that order; row(i) points to the i-th row of all.
template <typename T, typename Row>
void sum_token_rows(std::span<const int32_t> offsets, const Row& row, bool accumulate, Tensor& y_TD) {
  const int64_t tokens = y_TD.size(0), n = y_TD.size(1);
  const int64_t per_token = tokens == 0 ? 1 : 1 + offsets.back() / tokens;
  const auto add = loops<T>().add;
  T* y = y_TD.mutable_data_ptr<T>();
  for_rows(tokens, per_token * n, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t first = offsets[t], last = offsets[t + 1];
      if (!accumulate && first == last) std::fill_n(y + t * n, n, T{0});
      for (int32_t i = first; i < last; ++i) {
        if (i + kRowsAhead < offsets[end]) prefetch_row(row(i + kRowsAhead), n);
        if (i == first && !accumulate) {
          std::copy_n(row(i), n, y + t * n);
        } else {
          add(y + t * n, row(i), n);
        }
      }
    }
  });
}

}  // namespace

void sum_rows(const Tensor& src_ND, std::span<const int32_t> token_offsets, std::span<const int32_t> token_rows,
              bool accumulate, Tensor& y_TD) {
  if (is_bf16(src_ND))
    return rounded(y_TD, [&](Tensor& y) { sum_rows(wide(src_ND), token_offsets, token_rows, accumulate, y); });
  const char* name = "sum_rows";
  check_tensors(name, {{src_ND, "src_ND"}, {y_TD, "y_TD"}});
  check_dimensions(name, {src_ND, "src_ND"}, 2);
  check_dimensions(name, {y_TD, "y_TD"}, 2);
  const int64_t rows = src_ND.size(0), n = src_ND.size(1), tokens = y_TD.size(0);
  check_sizes(name, {y_TD, "y_TD"}, {tokens, n});
  check_count(name, "token_offsets", static_cast<int64_t>(token_offsets.size()), tokens + 1);
  check(token_offsets.front() == 0 && std::is_sorted(token_offsets.begin(), token_offsets.end()),
        "sum_rows: token_offsets must start at 0 and never fall");
  check_count(name, "token_rows", static_cast<int64_t>(token_rows.size()), token_offsets.back());
  for (const int32_t row : token_rows) check_index(name, "token_rows", row, rows);
  with_type(src_ND, [&](auto zero) {
    using T = decltype(zero);
    const T* src = src_ND.const_data_ptr<T>();
    sum_token_rows<T>(
        token_offsets, [&](int32_t i) { return src + token_rows[i] * n; }, accumulate, y_TD);
  });
}

void sum_placed_rows(std::span<const Tensor> sources, std::span<const int32_t> token_offsets,
                     std::span<const RowPlace> token_places, Tensor& y_TD) {
  const char* name = "sum_placed_rows";
  check_tensors(name, {{y_TD, "y_TD"}});
  check_dimensions(name, {y_TD, "y_TD"}, 2);
  const int64_t tokens = y_TD.size(0), n = y_TD.size(1);
  for (const Tensor& source : sources) {
    check_tensors(name, {{y_TD, "y_TD"}, {source, "source"}});
    check_sizes(name, {source, "source"}, {source.size(0), n});
  }
  check_count(name, "token_offsets", static_cast<int64_t>(token_offsets.size()), tokens + 1);
  check(token_offsets.front() == 0 && std::is_sorted(token_offsets.begin(), token_offsets.end()),
        "sum_placed_rows: token_offsets must start at 0 and never fall");
  check_count(name, "token_places", static_cast<int64_t>(token_places.size()), token_offsets.back());
  for (const RowPlace place : token_places) {
    check_index(name, "token_places", place.tensor, static_cast<int64_t>(sources.size()));
    check_index(name, "token_places", place.row, sources[place.tensor].size(0));
  }
  with_type(y_TD, [&](auto zero) {
    using T = decltype(zero);
    std::vector<const T*> bases;
    for (const Tensor& source : sources) bases.push_back(source.const_data_ptr<T>());
    const auto row = [&](int32_t i) { return bases[token_places[i].tensor] + token_places[i].row * n; };
    sum_token_rows<T>(token_offsets, row, false, y_TD);
  });
}

void add_bias(Tensor& y_TO, const Tensor& bias_O) {
  if (on_device(y_TO)) return add_bias_on_device(y_TO, bias_O);
  if (is_bf16(y_TO)) return rounded(y_TO, [&](Tensor& y) { add_bias(y, wide(bias_O)); });
  const char* name = "add_bias";
  check_tensors(name, {{y_TO, "y_TO"}, {bias_O, "bias_O"}});
  check_dimensions(name, {y_TO, "y_TO"}, 2);
  const int64_t rows = y_TO.size(0), n = y_TO.size(1);
  check_sizes(name, {bias_O, "bias_O"}, {n});
  with_type(y_TO, [&](auto zero) {
    using T = decltype(zero);
    const T* bias = bias_O.const_data_ptr<T>();
    T* y = y_TO.mutable_data_ptr<T>();
    for_rows(rows, n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) loops<T>().add(y + t * n, bias, n);
    });
  });
}

void sum_columns(const Tensor& dy_TO, Tensor& dbias_O) {
  if (on_device(dy_TO)) return sum_columns_on_device(dy_TO, dbias_O);
  if (is_bf16(dy_TO)) return sum_columns(wide(dy_TO), dbias_O);
  const char* name = "sum_columns";
  check_tensors(name, {{dy_TO, "dy_TO"}, {dbias_O, "dbias_O"}});
  check_dimensions(name, {dy_TO, "dy_TO"}, 2);
  const int64_t rows = dy_TO.size(0), n = dy_TO.size(1);
  check_sizes(name, {dbias_O, "dbias_O"}, {n});
  with_type(dy_TO, [&](auto zero) {
    using T = decltype(zero);
    const T* dy = dy_TO.const_data_ptr<T>();
    T* dbias = dbias_O.mutable_data_ptr<T>();
    for_column_blocks(n, rows, [&](int64_t begin, int64_t end) {
      for (int64_t block = 0; block < rows; block += kRowBlock) {
        T sum[kColumnBlock] = {};
        for (int64_t t = block; t < std::min(rows, block + kRowBlock); ++t) {
          loops<T>().add(sum, dy + t * n + begin, end - begin);
        }
        for (int64_t c = begin; c < end; ++c) dbias[c] += sum[c - begin];
      }
    });
  });
}

void add(Tensor& y, const Tensor& x) {
  if (on_device(y)) return add_on_device(y, x);
  if (is_bf16(x)) return rounded(y, [&](Tensor& sum) { add(sum, wide(x)); });
  check_tensors("add", {{y, "y"}, {x, "x"}});
  check_count("add", "x", x.numel(), y.numel());
  with_type(y, [&](auto zero) {
    using T = decltype(zero);
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    for_rows(y.numel(), 1, [&](int64_t begin, int64_t end) { loops<T>().add(to + begin, from + begin, end - begin); });
  });
}

}  // namespace conclave::kernels
