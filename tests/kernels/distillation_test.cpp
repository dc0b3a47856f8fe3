// SPDX-License-Identifier: Apache-2.0
#include "kernels/distillation.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cross_entropy.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

struct Made {
  Tensor losses_2N, gradient_NV;
};

DistillationChunk chunk_of(int64_t rows, int64_t vocabulary, at::ScalarType dtype) {
  DistillationChunk chunk{.student_NV = random_tensor({rows, vocabulary}, dtype, 1) * 3,
                          .teacher_NV = random_tensor({rows, vocabulary}, dtype, 2) * 3};
  const auto targets = random_indices(rows, 0, static_cast<int32_t>(vocabulary), 3);
  chunk.targets_N = at::tensor(targets);
  std::vector<float> mask(rows, 1.0f);
  if (rows > 3) mask[2] = 0.0f, mask[3] = 0.25f;
  chunk.mask_N = at::tensor(mask);
  chunk.weight = 0.3, chunk.temperature = 1.7;
  return chunk;
}

// Of columns on one rank.
Made make(DistillationChunk chunk, bool by_tensors = false) {
  chunk.student_NV = chunk.student_NV.clone();
  chunk.teacher_NV = chunk.teacher_NV.clone();
  const Tensor sums = by_tensors ? distillation_sums_by_tensors(chunk) : distillation_sums(chunk);
  const Tensor cross_entropy = sums[kStudent] - sums[kTarget],
               divergence = sums[kCross] - sums[kTeacherHot] + sums[kStudentHot];
  const Tensor share = at::zeros({3, sums.size(1)}, sums.options()) + 1;
  by_tensors ? distillation_gradient_by_tensors(chunk, share) : distillation_gradient(chunk, share);
  return {at::stack({cross_entropy, divergence * chunk.temperature * chunk.temperature}) * chunk.mask_N,
          chunk.student_NV};
}

// The definition, followed by autograd in double.
Made by_definition(const DistillationChunk& chunk) {
  const Tensor student = leaf(chunk.student_NV), teacher = leaf(chunk.teacher_NV).detach();
  const Tensor mask = chunk.mask_N.to(at::kDouble);
  const double tau = chunk.temperature;
  const Tensor log_p = at::log_softmax(student / tau, 1), log_q = at::log_softmax(teacher / tau, 1);
  const Tensor divergence = tau * tau * (log_q.exp() * (log_q - log_p)).sum(1) * mask;
  const Tensor at_target = student.index({at::arange(student.size(0)), chunk.targets_N.to(at::kLong)});
  const Tensor cross_entropy = (at::logsumexp(student, {1}) - at_target) * mask;
  ((1 - chunk.weight) * cross_entropy + chunk.weight * divergence).sum().backward();
  return {at::stack({cross_entropy, divergence}), student.grad()};
}

TEST(Distillation, IsTheDefinitionAndItsGradient) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t rows : {1, 9}) {
      for (const int64_t vocabulary : {2, 63, 509, 5003}) {
        const auto chunk = chunk_of(rows, vocabulary, dtype);
        const Made expected = by_definition(chunk);
        for (const bool by_tensors : {false, true}) {
          const Made made = make(chunk, by_tensors);
          expect_close(made.losses_2N, expected.losses_2N, "losses");
          expect_close(made.gradient_NV, expected.gradient_NV, "gradient");
        }
      }
    }
  }
}

TEST(Distillation, GradientEqualsFiniteDifferences) {
  const auto chunk = chunk_of(1, 11, at::kDouble);
  const Tensor gradient = make(chunk).gradient_NV;
  const double step = 1e-5;
  for (int64_t i = 0; i < 11; ++i) {
    const auto loss = [&](double shift) {
      auto moved = chunk;
      moved.student_NV = chunk.student_NV.clone();
      moved.student_NV[0][i] += shift;
      const Tensor losses = make(moved).losses_2N;
      return ((1 - chunk.weight) * losses[0][0] + chunk.weight * losses[1][0]).item<double>();
    };
    EXPECT_NEAR(gradient[0][i].item<double>(), (loss(step) - loss(-step)) / (2 * step), 1e-9);
  }
}

TEST(Distillation, WithoutWeightIsTheCrossEntropyToTheBit) {
  for (const auto dtype : kBothTypes) {
    auto chunk = chunk_of(9, 509, dtype);
    chunk.weight = 0;
    const Made made = make(chunk);
    Tensor logits = chunk.student_NV.clone(), losses = at::zeros({9}, logits.options());
    cross_entropy_rows(logits, chunk.targets_N, chunk.mask_N, true, losses);
    expect_same_bits(made.gradient_NV, logits, "gradient");
    expect_same_bits(made.losses_2N[0].contiguous(), losses, "loss");
  }
}

TEST(Distillation, ATeacherThatIsTheStudentTeachesNothing) {
  for (const auto dtype : kBothTypes) {
    auto chunk = chunk_of(9, 509, dtype);
    chunk.teacher_NV = chunk.student_NV;
    chunk.weight = 1;
    const Made made = make(chunk);
    EXPECT_EQ(made.losses_2N[1].abs().max().item<double>(), 0);
    EXPECT_EQ(made.gradient_NV.abs().max().item<double>(), 0);
  }
}

TEST(Distillation, RowsThatDoNotCountAreZeroWhateverTheirLogits) {
  for (const bool by_tensors : {false, true}) {
    auto chunk = chunk_of(9, 63, at::kFloat);
    chunk.student_NV[2].fill_(NAN);
    chunk.teacher_NV[2].fill_(INFINITY);
    chunk.targets_N[2] = -100;
    const Made made = make(chunk, by_tensors);
    EXPECT_EQ(made.losses_2N.select(1, 2).abs().sum().item<double>(), 0);
    EXPECT_EQ(made.gradient_NV[2].abs().sum().item<double>(), 0);
  }
}

TEST(Distillation, PartsOfTheVocabularyMakeTheWhole) {
  const auto chunk = chunk_of(9, 101, at::kDouble);
  const Made whole = make(chunk);
  std::vector<DistillationChunk> parts;
  std::vector<Tensor> sums;
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 40}, {40, 61}}) {
    auto part = chunk;
    part.student_NV = chunk.student_NV.narrow(1, first, count).contiguous();
    part.teacher_NV = chunk.teacher_NV.narrow(1, first, count).contiguous();
    part.first = first;
    sums.push_back(distillation_sums(part));
    parts.push_back(part);
  }
  const Tensor all = at::stack(sums);  // [2, 5, N]
  const auto lse = [&](int which) { return at::logsumexp(all.select(1, which), {0}); };
  std::vector<Tensor> gradients;
  for (size_t r = 0; r < parts.size(); ++r) {
    const Tensor share = at::stack({sums[r][kStudent] - lse(kStudent), sums[r][kStudentHot] - lse(kStudentHot),
                                    sums[r][kTeacherHot] - lse(kTeacherHot)})
                             .exp();
    distillation_gradient(parts[r], share);
    gradients.push_back(parts[r].student_NV);
  }
  expect_close(at::cat(gradients, 1), whole.gradient_NV, "gradient");
  const Tensor part_of_q = (all.select(1, kTeacherHot) - lse(kTeacherHot)).exp();
  const Tensor divergence =
      ((all.select(1, kCross) * part_of_q).sum(0) - lse(kTeacherHot) + lse(kStudentHot)) * chunk.mask_N;
  expect_close(divergence * chunk.temperature * chunk.temperature, whole.losses_2N[1], "divergence");
  expect_close((lse(kStudent) - all.select(1, kTarget).sum(0)) * chunk.mask_N, whole.losses_2N[0], "cross entropy");
}

TEST(Distillation, OfBf16LogitsIsThatOfTheRoundedOnes) {
  auto chunk = chunk_of(9, 63, at::kFloat);
  chunk.student_NV = chunk.student_NV.to(at::kBFloat16), chunk.teacher_NV = chunk.teacher_NV.to(at::kBFloat16);
  auto rounded = chunk;
  rounded.student_NV = chunk.student_NV.to(at::kFloat), rounded.teacher_NV = chunk.teacher_NV.to(at::kFloat);
  const Made expected = make(rounded);
  for (const bool by_tensors : {false, true}) {
    const Made made = make(chunk, by_tensors);
    EXPECT_EQ(made.losses_2N.scalar_type(), at::kFloat);
    expect_close(made.losses_2N, expected.losses_2N, "losses");
    EXPECT_LE((made.gradient_NV.to(at::kFloat) - expected.gradient_NV).abs().max().item<double>(), 0.003);
  }
}

TEST(Distillation, ThreadsDoNotShow) {
  expect_threads_do_not_show([] {
    const Made made = make(chunk_of(37, 509, at::kFloat));
    return std::vector<Tensor>{made.losses_2N, made.gradient_NV};
  });
}

}  // namespace
}  // namespace conclave::kernels
