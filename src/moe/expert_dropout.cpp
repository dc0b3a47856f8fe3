// SPDX-License-Identifier: Apache-2.0
#include "moe/expert_dropout.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/random.h"

namespace conclave::moe {
namespace {

constexpr int64_t kDigits = 12, kBase = 16, kNumbers = kDigits + 1;
constexpr int kLargestE4m3 = 448;
constexpr int64_t kGrain = 8;  // rows
constexpr int64_t kWords = 4;  // of one draw

}  // namespace

void ExpertDropout::apply(std::span<const Segment> segments, std::span<const int64_t> tokens_R, int64_t step,
                          Tensor& act_RF) const {
  check(std::ssize(tokens_R) == act_RF.size(0), "every row has a token");
  const Random random(site_.seed, Purpose::kExpertDropout, static_cast<uint64_t>(step),
                      static_cast<uint32_t>(site_.layer));
  const int64_t F = act_RF.size(1), draws = (site_.widest + kWords - 1) / kWords;
  const auto lost_below = static_cast<uint64_t>(rate_ * 0x1p32);
  by_dtype(act_RF, [&](auto zero) {
    using T = decltype(zero);
    const auto act = elements<T>(act_RF);
    const T left = static_cast<T>(1 / (1 - rate_));
    for (const Segment& segment : segments) {
      const int64_t first = site_.first_columns.empty() ? 0 : site_.first_columns.at(segment.expert);
      at::parallel_for(segment.begin, segment.begin + segment.rows, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const auto of_row =
              static_cast<uint64_t>(tokens_R[r] * site_.experts + site_.first_expert + segment.expert) * draws;
          std::array<uint32_t, kWords> words{};
          for (int64_t f = 0; f < F; ++f) {
            const int64_t column = first + f;
            if (f == 0 || column % kWords == 0) words = random.words(of_row + static_cast<uint64_t>(column / kWords));
            act[r * F + f] *= words[column % kWords] < lost_below ? T{0} : left;
          }
        }
      });
    }
  });
}

Tensor token_digits(std::span<const int64_t> tokens_T, const at::TensorOptions& options) {
  Tensor digits = at::empty({std::ssize(tokens_T), kNumbers}, options);
  by_dtype(digits, [&](auto zero) {
    using T = decltype(zero);
    const auto out = elements<T>(digits);
    for (size_t t = 0; t < tokens_T.size(); ++t) {
      int64_t rest = std::max<int64_t>(0, tokens_T[t]);  // padding has none
      out[t * kNumbers] = kLargestE4m3;
      for (int64_t i = 1; i <= kDigits; ++i, rest /= kBase) out[t * kNumbers + i] = static_cast<T>(rest % kBase);
      check(rest == 0, "global token ids are below 2^48");
    }
  });
  return digits;
}

std::vector<int64_t> tokens_of(const Tensor& digits_R13) {
  std::vector<int64_t> tokens(digits_R13.size(0), 0);
  by_dtype(digits_R13, [&](auto zero) {
    using T = decltype(zero);
    const std::span<const T> digits = elements<T>(digits_R13);
    for (size_t r = 0; r < tokens.size(); ++r)
      for (int64_t i = kDigits; i > 0; --i)
        tokens[r] = tokens[r] * kBase + static_cast<int64_t>(digits[r * kNumbers + i]);
  });
  return tokens;
}

}  // namespace conclave::moe
