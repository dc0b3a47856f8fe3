// SPDX-License-Identifier: Apache-2.0
#include "nn/token_exchange.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "kernels/rows.h"

namespace conclave::nn {
namespace {

int64_t rows_of_each(const Tensor& x_TD, const comm::Group& tp) {
  check(x_TD.size(0) % tp.size() == 0, "tokens must divide over the tensor-parallel ranks");
  return x_TD.size(0) / tp.size();
}

Tensor gathered(const Tensor& x, const comm::Group& tp) {
  const Tensor own = x.contiguous();
  Tensor all = at::empty({own.size(0) * tp.size(), own.size(1)}, own.options());
  by_dtype(own, [&](auto zero) {
    using T = decltype(zero);
    tp.all_gather(std::span<const T>(elements<T>(own)), elements<T>(all));
  });
  return all;
}

// Each rank gets everyone's term of its rows and adds them up.
Tensor reduce_scattered(const Tensor& x, const comm::Group& tp) {
  const int64_t rows = rows_of_each(x, tp);
  const Tensor terms = x.contiguous();
  Tensor received = at::empty_like(terms);
  by_dtype(terms, [&](auto zero) {
    using T = decltype(zero);
    tp.all_to_all(std::span<const T>(elements<T>(terms)), elements<T>(received));
  });
  Tensor sum = received.narrow(0, 0, rows).clone();
  for (int r = 1; r < tp.size(); ++r) kernels::add(sum, received.narrow(0, r * rows, rows));
  return sum;
}

}  // namespace

TokenMoves enter_tensor_region(bool sequence_parallel) {
  return sequence_parallel ? TokenMoves{TokenMove::kGather, TokenMove::kReduceScatter, Redo::kSelective}
                           : TokenMoves{TokenMove::kKeep, TokenMove::kAllReduce, Redo::kSelective};
}

TokenMoves leave_tensor_region(bool sequence_parallel) {
  return sequence_parallel ? TokenMoves{TokenMove::kReduceScatter, TokenMove::kGather, Redo::kNever}
                           : TokenMoves{TokenMove::kAllReduce, TokenMove::kKeep, Redo::kNever};
}

Tensor move_tokens(TokenMove move, const Tensor& x, const comm::Group& tp) {
  switch (move) {
    case TokenMove::kKeep:
      return x;
    case TokenMove::kGather:
      return gathered(x, tp);
    case TokenMove::kSlice:
      return x.narrow(0, tp.rank() * rows_of_each(x, tp), rows_of_each(x, tp)).clone();
    case TokenMove::kReduceScatter:
      return reduce_scattered(x, tp);
    case TokenMove::kAllReduce:
      return gathered(reduce_scattered(x, tp), tp);
  }
  return {};
}

TokenExchange::TokenExchange(StageSite site, const comm::Group& tp, TokenMoves moves, Wire wire)
    : Stage(std::move(site)), tp_(tp), moves_(moves), wire_(wire) {}

void TokenExchange::forward(Frame& frame) {
  frame.value(wire_.output) = move_tokens(moves_.forward, frame.value(wire_.input), tp_);
}

void TokenExchange::backward_input(Frame& frame) {
  const Tensor moved = move_tokens(moves_.backward, frame.grad(wire_.output), tp_);
  // What is kept may be another branch's too; sums are made in place.
  frame.add_grad(wire_.input, moves_.backward == TokenMove::kKeep ? moved.clone() : moved);
}

}  // namespace conclave::nn
