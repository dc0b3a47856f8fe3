// SPDX-License-Identifier: Apache-2.0
#include "moe/chunk_stages.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "kernels/rows.h"

namespace conclave::moe {
namespace {

using Pairs = std::vector<std::vector<int32_t>>;  // by chunk

int64_t first_token(int64_t chunk, int64_t chunks, int64_t tokens) { return tokens * chunk / chunks; }

}  // namespace

Routing part_of(const Routing& whole, int64_t begin, int64_t end, std::vector<int32_t>& pairs) {
  Routing part;
  part.tokens = end - begin;
  part.offsets_E1.push_back(0);
  pairs.clear();
  std::vector<int32_t> place(whole.pairs(), -1);
  for (int64_t e = 0; e < whole.experts(); ++e) {
    for (int32_t n = whole.offsets_E1[e]; n < whole.offsets_E1[e + 1]; ++n) {
      if (whole.rows_N[n] < begin || whole.rows_N[n] >= end) continue;
      place[n] = static_cast<int32_t>(pairs.size());
      pairs.push_back(n);
      part.rows_N.push_back(whole.rows_N[n] - static_cast<int32_t>(begin));
      part.picks_N.push_back(whole.picks_N[n]);
    }
    part.offsets_E1.push_back(static_cast<int32_t>(pairs.size()));
  }
  const int32_t first = whole.token_offsets_T1[begin];
  for (int64_t t = begin; t <= end; ++t) part.token_offsets_T1.push_back(whole.token_offsets_T1[t] - first);
  for (int32_t i = first; i < whole.token_offsets_T1[end]; ++i)
    part.token_rows_N.push_back(place[whole.token_rows_N[i]]);
  return part;
}

std::vector<nn::Slot> CutTokens::outputs() const {
  std::vector<nn::Slot> slots{slots_.pairs};
  for (const auto& chunk : slots_.chunks) slots.insert(slots.end(), {chunk.input, chunk.weights, chunk.decision});
  return slots;
}

void CutTokens::forward(nn::Frame& frame) {
  const Routing& routing = frame.object_as<Decision>(slots_.decision).routing;
  const auto chunks = static_cast<int64_t>(slots_.chunks.size());
  Pairs pairs(chunks);
  for (int64_t c = 0; c < chunks; ++c) {
    Decision decision;
    decision.first_token =
        frame.object_as<Decision>(slots_.decision).first_token + first_token(c, chunks, routing.tokens);
    decision.routing =
        part_of(routing, first_token(c, chunks, routing.tokens), first_token(c + 1, chunks, routing.tokens), pairs[c]);
    const ChunkSlots& chunk = slots_.chunks[c];
    frame.object(chunk.decision) = std::move(decision);
    frame.object(chunk.plan) = dispatcher_.plan(frame.object_as<Decision>(chunk.decision).routing);
  }
  frame.object(slots_.pairs) = std::move(pairs);
  forward_again(frame);
}

void CutTokens::forward_again(nn::Frame& frame) {
  const Tensor& x = frame.value(slots_.input);
  const Tensor& weights = frame.value(slots_.weights);
  const auto& pairs = frame.object_as<Pairs>(slots_.pairs);
  int64_t begin = 0;
  for (size_t c = 0; c < slots_.chunks.size(); ++c) {
    const int64_t tokens = frame.object_as<Decision>(slots_.chunks[c].decision).routing.tokens;
    frame.value(slots_.chunks[c].input) = x.narrow(0, begin, tokens);
    Tensor own = at::empty({static_cast<int64_t>(pairs[c].size()), 1}, weights.options());
    kernels::gather_rows(weights.view({-1, 1}), pairs[c], own);
    frame.value(slots_.chunks[c].weights) = own.view({-1});
    begin += tokens;
  }
}

void CutTokens::backward_input(nn::Frame& frame) {
  const auto& pairs = frame.object_as<Pairs>(slots_.pairs);
  std::vector<Tensor> parts;
  Tensor dweights = at::empty(frame.object_as<Decision>(slots_.decision).routing.pairs(),
                              frame.grad(slots_.chunks[0].weights).options());
  for (size_t c = 0; c < slots_.chunks.size(); ++c) {
    parts.push_back(frame.grad(slots_.chunks[c].input));
    const Tensor& own = frame.grad(slots_.chunks[c].weights);
    by_dtype(own, [&](auto zero) {
      using T = decltype(zero);
      const auto from = elements<T>(own), to = elements<T>(dweights);
      for (size_t i = 0; i < pairs[c].size(); ++i) to[pairs[c][i]] = from[i];
    });
  }
  frame.add_grad(slots_.input, at::cat(parts));
  frame.add_grad(slots_.weights, dweights);
}

void JoinTokens::forward(nn::Frame& frame) {
  std::vector<Tensor> parts;
  for (const nn::Slot slot : inputs_) parts.push_back(frame.value(slot));
  frame.value(output_) = at::cat(parts);
}

void JoinTokens::backward_input(nn::Frame& frame) {
  const Tensor& dy = frame.grad(output_);
  const auto chunks = static_cast<int64_t>(inputs_.size());
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = first_token(c, chunks, dy.size(0)), end = first_token(c + 1, chunks, dy.size(0));
    frame.add_grad(inputs_[c], dy.narrow(0, begin, end - begin));
  }
}

}  // namespace conclave::moe
