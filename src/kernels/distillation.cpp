// SPDX-License-Identifier: Apache-2.0
#include "kernels/distillation.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "kernels/arguments.h"
#include "kernels/bf16.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

// An element costs about this many plain element operations: three exponentials and their passes.
constexpr int64_t kWork = 24;

void check_chunk(const DistillationChunk& chunk) {
  const char* name = "distillation";
  check_tensors(name, {{chunk.student_NV, "student_NV"}, {chunk.teacher_NV, "teacher_NV"}});
  check_dimensions(name, {chunk.student_NV, "student_NV"}, 2);
  const int64_t rows = chunk.student_NV.size(0);
  check_sizes(name, {chunk.teacher_NV, "teacher_NV"}, {rows, chunk.student_NV.size(1)});
  check_sizes(name, {chunk.targets_N, "targets_N"}, {rows});
  check_sizes(name, {chunk.mask_N, "mask_N"}, {rows});
}

// Column of a row's target here, or -1.
int64_t column_of(const DistillationChunk& chunk, int64_t row) {
  const int64_t column = chunk.targets_N.const_data_ptr<int32_t>()[row] - chunk.first;
  return column >= 0 && column < chunk.student_NV.size(1) ? column : -1;
}

template <typename T>
void over_temperature(const T* logits, T temperature, std::vector<T>& hot) {
  for (size_t j = 0; j < hot.size(); ++j) hot[j] = logits[j] / temperature;
}

template <typename T>
void row_sums(const DistillationChunk& chunk, int64_t i, std::vector<T>& z, std::vector<T>& t, Tensor& sums_5N) {
  const int64_t n = chunk.student_NV.size(1), rows = chunk.student_NV.size(0), column = column_of(chunk, i);
  const T* student = chunk.student_NV.const_data_ptr<T>() + i * n;
  T* sums = sums_5N.mutable_data_ptr<T>() + i;
  sums[kStudent * rows] = loops<T>().log_sum_exp(student, n);
  sums[kTarget * rows] = column < 0 ? T{0} : student[column];
  const auto temperature = static_cast<T>(chunk.temperature);
  over_temperature(student, temperature, z);
  over_temperature(chunk.teacher_NV.const_data_ptr<T>() + i * n, temperature, t);
  sums[kStudentHot * rows] = loops<T>().log_sum_exp(z.data(), n);
  // The difference first: where both models agree it is exactly 0.
  for (int64_t j = 0; j < n; ++j) z[j] = t[j] - z[j];
  sums[kTeacherHot * rows] = loops<T>().softmax_in_place(t.data(), T{1}, n);
  sums[kCross * rows] = loops<T>().dot(t.data(), z.data(), n);
}

template <typename T>
void row_gradient(DistillationChunk& chunk, int64_t i, const Tensor& share_3N, std::vector<T>& hot) {
  const int64_t n = chunk.student_NV.size(1), rows = chunk.student_NV.size(0), column = column_of(chunk, i);
  const T* share = share_3N.const_data_ptr<T>() + i;
  const T mask = static_cast<T>(chunk.mask_N.const_data_ptr<float>()[i]);
  const T of_targets = static_cast<T>(1 - chunk.weight) * mask;
  const T of_teacher = static_cast<T>(chunk.weight * chunk.temperature) * mask;
  T* student = chunk.student_NV.mutable_data_ptr<T>() + i * n;
  T* teacher = chunk.teacher_NV.mutable_data_ptr<T>() + i * n;
  const auto temperature = static_cast<T>(chunk.temperature);
  over_temperature(student, temperature, hot);
  for (int64_t j = 0; j < n; ++j) teacher[j] /= temperature;
  loops<T>().softmax_in_place(student, of_targets * share[0], n);
  loops<T>().softmax_in_place(hot.data(), of_teacher * share[rows], n);
  loops<T>().softmax_in_place(teacher, of_teacher * share[2 * rows], n);
  for (int64_t j = 0; j < n; ++j) student[j] += hot[j] - teacher[j];
  if (column >= 0) student[column] -= of_targets;
}

// Calls f(chunk in a type that loops know) and takes over what became of the logits.
template <typename F>
void in_wide_type(DistillationChunk& chunk, const F& f) {
  DistillationChunk exact = chunk;
  exact.student_NV = wide(chunk.student_NV);
  exact.teacher_NV = wide(chunk.teacher_NV);
  f(exact);
  if (is_bf16(chunk.student_NV)) chunk.student_NV.copy_(exact.student_NV);
}

}  // namespace

Tensor distillation_sums(const DistillationChunk& chunk) {
  if (on_device(chunk.student_NV)) return distillation_sums_by_tensors(chunk);
  DistillationChunk exact = chunk;
  exact.student_NV = wide(chunk.student_NV);
  exact.teacher_NV = wide(chunk.teacher_NV);
  check_chunk(exact);
  const int64_t rows = exact.student_NV.size(0), n = exact.student_NV.size(1);
  Tensor sums_5N = at::empty({5, rows}, exact.student_NV.options());
  with_type(exact.student_NV, [&](auto zero) {
    using T = decltype(zero);
    for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
      std::vector<T> z(n), t(n);
      for (int64_t i = begin; i < end; ++i) {
        if (exact.mask_N.const_data_ptr<float>()[i] != 0) {
          row_sums<T>(exact, i, z, t, sums_5N);
        } else {
          for (int64_t s = 0; s < 5; ++s) sums_5N.mutable_data_ptr<T>()[s * rows + i] = T{0};
        }
      }
    });
  });
  return sums_5N;
}

void distillation_gradient(DistillationChunk& chunk, const Tensor& share_3N) {
  if (on_device(chunk.student_NV)) return distillation_gradient_by_tensors(chunk, share_3N);
  in_wide_type(chunk, [&](DistillationChunk& exact) {
    check_chunk(exact);
    const int64_t rows = exact.student_NV.size(0), n = exact.student_NV.size(1);
    check_tensors("distillation_gradient", {{exact.student_NV, "student_NV"}, {share_3N, "share_3N"}});
    check_sizes("distillation_gradient", {share_3N, "share_3N"}, {3, rows});
    with_type(exact.student_NV, [&](auto zero) {
      using T = decltype(zero);
      for_rows(rows, kWork * n, [&](int64_t begin, int64_t end) {
        std::vector<T> hot(n);
        for (int64_t i = begin; i < end; ++i) {
          T* row = exact.student_NV.mutable_data_ptr<T>() + i * n;
          if (exact.mask_N.const_data_ptr<float>()[i] != 0) {
            row_gradient<T>(exact, i, share_3N, hot);
          } else {
            std::fill_n(row, n, T{0});
          }
        }
      });
    });
  });
}

}  // namespace conclave::kernels
