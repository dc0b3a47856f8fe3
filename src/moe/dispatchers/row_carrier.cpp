// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatchers/row_carrier.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <memory>
#include <numeric>

namespace conclave::moe {
namespace {

// Pieces of a message begin where numbers of every type may.
constexpr int64_t kPieceAlignment = 8;

int64_t sum_of(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

int64_t width_of(const Tensor& rows) { return rows.dim() == 1 ? 1 : rows.size(1); }

Tensor rows_like(const Tensor& rows, int64_t count) {
  return rows.dim() == 1 ? at::empty({count}, rows.options()) : at::empty({count, rows.size(1)}, rows.options());
}

std::vector<int64_t> scaled(std::vector<int64_t> counts, int64_t factor) {
  for (auto& count : counts) count *= factor;
  return counts;
}

std::span<std::byte> bytes_of(const Tensor& t) { return {static_cast<std::byte*>(t.data_ptr()), t.nbytes()}; }

// One exchange for each distance between ranks, from and to the rows' own places. `rows` are read until it is over.
Tensor start_pieces(const comm::Group& group, const Tensor& rows, const std::vector<int64_t>& counts,
                    std::vector<comm::Work>& works) {
  Tensor all = rows_like(rows, sum_of(counts));
  const int ranks = group.size(), rank = group.rank();
  std::vector<std::span<std::byte>> pieces;
  for (int64_t first = 0, r = 0; r < ranks; first += counts[r++])
    pieces.push_back(bytes_of(all.narrow(0, first, counts[r])));
  const auto own = bytes_of(rows);
  std::copy(own.begin(), own.end(), pieces[rank].begin());
  for (int distance = 1; distance < ranks; ++distance) {
    const int to = (rank + distance) % ranks, from = (rank - distance + ranks) % ranks;
    std::vector<int64_t> sent(ranks, 0), received(ranks, 0);
    sent[to] = std::ssize(own);
    received[from] = std::ssize(pieces[from]);
    // What arrives is written as long as its work lives, also where a later one cannot start.
    struct UnderWay {
      Tensor into;
      comm::Work exchange;
    };
    auto state = std::make_shared<UnderWay>();
    state->into = all;
    state->exchange = group.start_all_to_all_v(std::span<const std::byte>(own), std::span<const int64_t>(sent),
                                               pieces[from], std::span<const int64_t>(received));
    works.emplace_back([state] { state->exchange.finish(); });
  }
  return all;
}

// Rows as they lie in a message: those of each rank a piece, rounded or not.
struct Message {
  Tensor bytes;
  std::vector<int64_t> sizes;  // of each rank's piece, in bytes

  // Calls copy(rows of the rank's piece in `rows`, the piece) for each rank. ATen's copy rounds to nearest even.
  template <typename Rounded, typename Copy>
  void for_pieces(const Tensor& rows, const std::vector<int64_t>& counts, const Rounded& rounded,
                  const Copy& copy) const {
    auto* place = static_cast<std::byte*>(bytes.data_ptr());
    int64_t first = 0;
    for (size_t r = 0; r < counts.size(); ++r) {
      const auto type = rounded(static_cast<int>(r)) ? at::kBFloat16 : rows.scalar_type();
      copy(rows.narrow(0, first, counts[r]), at::from_blob(place, {counts[r], rows.size(1)}, type));
      first += counts[r];
      place += sizes[r];
    }
  }
};

template <typename Rounded>
Message empty_message(const Tensor& rows, const std::vector<int64_t>& counts, const Rounded& rounded) {
  Message message;
  for (size_t r = 0; r < counts.size(); ++r) {
    const auto item = static_cast<int64_t>(rounded(static_cast<int>(r)) ? sizeof(at::BFloat16) : rows.element_size());
    const int64_t bytes = counts[r] * rows.size(1) * item;
    message.sizes.push_back((bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment);
  }
  message.bytes = at::empty({sum_of(message.sizes)}, at::kByte);
  return message;
}

}  // namespace

RowCarrier::RowCarrier(const comm::Group& group, const std::vector<int>& hosts, DispatchPayload payload)
    : group_(group) {
  rounds_ = payload == DispatchPayload::kBf16 &&
            std::any_of(hosts.begin(), hosts.end(), [&](int host) { return host != hosts[0]; });
  if (!rounds_) return;
  hosts_ = hosts;
  host_ = group.split(hosts[group.rank()], group.rank());
}

Tensor RowCarrier::start(const Tensor& rows, const Lane& lane, std::vector<comm::Work>& works) const {
  if (rounds_) return start_rounded(rows, lane, works);
  const int64_t width = width_of(rows);
  Tensor arriving = rows_like(rows, sum_of(lane.recv));
  by_dtype(rows, [&](auto zero) {
    using T = decltype(zero);
    works.push_back(group_.start_all_to_all_v<T>(elements<T>(rows), scaled(lane.send, width), elements<T>(arriving),
                                                 scaled(lane.recv, width)));
  });
  return arriving;
}

Tensor RowCarrier::start_rounded(const Tensor& rows, const Lane& lane, std::vector<comm::Work>& works) const {
  const auto rounded = [this](int rank) { return !near(rank); };
  Tensor arriving = rows_like(rows, sum_of(lane.recv));
  // The exchange goes first where a work is dropped unfinished: it writes and reads the others.
  struct UnderWay {
    Message sent, received;
    comm::Work exchange;
  };
  auto state = std::make_shared<UnderWay>();
  state->sent = empty_message(rows, lane.send, rounded);
  state->received = empty_message(rows, lane.recv, rounded);
  state->sent.for_pieces(rows, lane.send, rounded, [](const Tensor& from, const Tensor& to) { to.copy_(from); });
  const auto bytes = [](const Message& m) { return elements<uint8_t>(m.bytes); };
  state->exchange = group_.start_all_to_all_v<uint8_t>(bytes(state->sent), state->sent.sizes, bytes(state->received),
                                                       state->received.sizes);
  works.emplace_back([state, arriving, rounded, counts = lane.recv] {
    state->exchange.finish();
    state->received.for_pieces(arriving, counts, rounded, [](const Tensor& to, const Tensor& from) { to.copy_(from); });
    *state = {};
  });
  return arriving;
}

Tensor RowCarrier::start_gather(const Tensor& rows, const std::vector<int64_t>& counts,
                                std::vector<comm::Work>& works) const {
  return rounds_ ? start_gather_rounded(rows, counts, works) : start_pieces(group_, rows, counts, works);
}

Tensor RowCarrier::gather(const Tensor& rows, const std::vector<int64_t>& counts) const {
  Tensor all;  // dropped after the works that write it
  std::vector<comm::Work> works;
  all = start_gather(rows, counts, works);
  for (comm::Work& work : works) work.finish();
  return all;
}

// All ranks' rows rounded, and those of this host as they are.
Tensor RowCarrier::start_gather_rounded(const Tensor& rows, const std::vector<int64_t>& counts,
                                        std::vector<comm::Work>& works) const {
  struct UnderWay {
    Tensor sent, received, exact;
    std::vector<comm::Work> exchanges;  // dropped first
  };
  auto state = std::make_shared<UnderWay>();
  std::vector<int64_t> near_counts, first;  // of the ranks of this host, and where their rows belong
  for (int64_t at = 0, r = 0; r < group_.size(); at += counts[r++]) {
    if (!near(static_cast<int>(r))) continue;
    near_counts.push_back(counts[r]);
    first.push_back(at);
  }
  state->sent = rows.to(at::kBFloat16);
  state->received = start_pieces(group_, state->sent, counts, state->exchanges);
  state->exact = start_pieces(host_, rows, near_counts, state->exchanges);
  Tensor all = rows_like(rows, sum_of(counts));
  works.emplace_back([state, all, near_counts, first] {
    for (comm::Work& exchange : state->exchanges) exchange.finish();
    all.copy_(state->received);
    int64_t at = 0;
    for (size_t i = 0; i < first.size(); ++i) {
      all.narrow(0, first[i], near_counts[i]).copy_(state->exact.narrow(0, at, near_counts[i]));
      at += near_counts[i];
    }
    *state = {};
  });
  return all;
}

}  // namespace conclave::moe
