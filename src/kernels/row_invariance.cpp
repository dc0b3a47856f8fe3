// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_invariance.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/random.h"
#include "core/tensor.h"
#include "kernels/optimizer.h"

namespace conclave::kernels {
namespace {

class ThreadCount {
 public:
  ThreadCount() : before_(at::get_num_threads()) {}
  ~ThreadCount() { at::set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

Tensor random_matrix(int64_t rows, int64_t columns, const char* name) {
  Tensor matrix = at::empty({rows, columns}, at::kFloat);
  fill_normal(matrix, Random(1, Purpose::kTest, name), 0, 1.0);
  return matrix;
}

struct Operands {
  explicit Operands(const ProductShape& shape)
      : x(random_matrix(kProbeRows, shape.depth, "x")),
        weight(random_matrix(shape.columns, shape.depth, "weight")),
        dy(random_matrix(kProbeRows, shape.columns, "dy")) {}

  Tensor x, weight, dy;
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

struct Case {
  ProductShape shape;
  int64_t rows;
  int threads;
};

bool differs(const Case& c, const char* product, std::string* first_difference) {
  if (first_difference != nullptr) {
    *first_difference = fmt::format("{} of {} rows, depth {}, {} columns, {} threads", product, c.rows, c.shape.depth,
                                    c.shape.columns, c.threads);
  }
  return false;
}

// Calls test(operands, case) until one returns false.
template <typename Prepare, typename Test>
bool all_cases(const InvarianceProbe& probe, Prepare prepare, Test test) {
  const ThreadCount restore;
  for (const ProductShape& shape : probe.shapes) {
    const Operands operands(shape);
    at::set_num_threads(1);
    const auto reference = prepare(operands);
    for (const int threads : probe.threads) {
      for (const int64_t rows : probe.row_counts) {
        if (!test(operands, reference, Case{shape, rows, threads})) return false;
      }
    }
  }
  return true;
}

}  // namespace

bool rows_are_invariant(const InvarianceProbe& probe, std::string* first_difference) {
  struct Products {
    Tensor forward, input_gradient;
  };
  const auto prepare = [](const Operands& o) { return Products{at::mm(o.x, o.weight.t()), at::mm(o.dy, o.weight)}; };
  return all_cases(probe, prepare, [&](const Operands& o, const Products& whole, const Case& c) {
    at::set_num_threads(c.threads);
    const int64_t last = kProbeRows - c.rows;
    for (const int64_t first : {int64_t{0}, std::min<int64_t>(16, last), last}) {
      const auto part = [&](const Tensor& t) { return t.narrow(0, first, c.rows); };
      if (!same_bits(at::mm(part(o.x), o.weight.t()), part(whole.forward))) {
        return differs(c, "the forward product", first_difference);
      }
      if (!same_bits(at::mm(part(o.dy), o.weight), part(whole.input_gradient))) {
        return differs(c, "the input gradient", first_difference);
      }
    }
    return true;
  });
}

bool weight_gradients_are_invariant(const InvarianceProbe& probe, std::string* first_difference) {
  const auto nothing = [](const Operands&) { return 0; };
  return all_cases(probe, nothing, [&](const Operands& o, int, const Case& c) {
    const auto product = [&](int threads) {
      at::set_num_threads(threads);
      return at::mm(o.dy.narrow(0, 0, c.rows).t(), o.x.narrow(0, 0, c.rows));
    };
    return same_bits(product(c.threads), product(1)) || differs(c, "the weight gradient", first_difference);
  });
}

bool threads_do_not_show(const std::function<Tensor()>& product, int threads) {
  const ThreadCount restore;
  at::set_num_threads(1);
  const Tensor alone = product();
  at::set_num_threads(threads);
  return same_bits(alone, product());
}

std::string canonical_obstacle(int threads, std::span<const ProductShape> shapes) {
  static constexpr int64_t kRows[] = {16, 48, 112, 256};
  constexpr int64_t kLargest = 512, kStep = 16, kFew = 64;
  const auto tried = [](int64_t size) { return size <= kLargest ? size : kLargest - kStep + size % kStep; };
  std::vector<ProductShape> small;
  for (const ProductShape& shape : shapes) {
    const int64_t columns = shape.columns < kFew ? (shape.columns + kStep - 1) / kStep * kStep : shape.columns;
    small.push_back({tried(shape.depth), tried(columns)});
  }
  const std::vector<int> counts = threads > 1 ? std::vector<int>{1, threads} : std::vector<int>{1};
  const InvarianceProbe probe{small, kRows, counts};
  std::string difference;
  if (rows_are_invariant(probe, &difference) && weight_gradients_are_invariant(probe, &difference)) return "";
  return fmt::format("its matrix library gives other bits for {} than for {} rows on one thread", difference,
                     kProbeRows);
}

}  // namespace conclave::kernels
