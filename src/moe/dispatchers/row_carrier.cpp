// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatchers/row_carrier.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "moe/dispatchers/row_format.h"

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

// Rows as they lie in a message: those of each rank a piece in its format.
struct Message {
  Tensor bytes;
  std::vector<int64_t> sizes;  // of each rank's piece, in bytes

  // Calls move(rows of the rank's piece in `rows`, the piece, its format) for each rank.
  template <typename Format, typename Move>
  void for_pieces(const Tensor& rows, const std::vector<int64_t>& counts, const Format& format,
                  const Move& move) const {
    int64_t first = 0, place = 0;
    for (size_t r = 0; r < counts.size(); ++r) {
      const Tensor own = rows.narrow(0, first, counts[r]);
      const DispatchPayload payload = format(static_cast<int>(r));
      move(own, bytes.narrow(0, place, counts[r] * row_bytes(rows, payload)), payload);
      first += counts[r];
      place += sizes[r];
    }
  }
};

template <typename Format>
Message empty_message(const Tensor& rows, const std::vector<int64_t>& counts, const Format& format) {
  Message message;
  for (size_t r = 0; r < counts.size(); ++r) {
    const int64_t bytes = counts[r] * row_bytes(rows, format(static_cast<int>(r)));
    message.sizes.push_back((bytes + kPieceAlignment - 1) / kPieceAlignment * kPieceAlignment);
  }
  message.bytes = at::empty({sum_of(message.sizes)}, at::kByte);
  return message;
}

}  // namespace

RowCarrier::RowCarrier(const comm::Group& group, const std::vector<int>& hosts, DispatchPayload payload)
    : group_(group) {
  const bool several = std::any_of(hosts.begin(), hosts.end(), [&](int host) { return host != hosts[0]; });
  if (!several || payload == DispatchPayload::kSame) return;
  payload_ = payload;
  hosts_ = hosts;
  host_ = group.split(hosts[group.rank()], group.rank());
}

Tensor RowCarrier::start(const Tensor& rows, const Lane& lane, std::vector<comm::Work>& works) const {
  if (payload_ != DispatchPayload::kSame) return start_rounded(rows, lane, works);
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
  const auto format = [this](int rank) { return near(rank) ? DispatchPayload::kSame : payload_; };
  Tensor arriving = rows_like(rows, sum_of(lane.recv));
  // The exchange goes first where a work is dropped unfinished: it writes and reads the others.
  struct UnderWay {
    Message sent, received;
    comm::Work exchange;
  };
  auto state = std::make_shared<UnderWay>();
  state->sent = empty_message(rows, lane.send, format);
  state->received = empty_message(rows, lane.recv, format);
  state->sent.for_pieces(rows, lane.send, format, pack_rows);
  const auto bytes = [](const Message& m) { return elements<uint8_t>(m.bytes); };
  state->exchange = group_.start_all_to_all_v<uint8_t>(bytes(state->sent), state->sent.sizes, bytes(state->received),
                                                       state->received.sizes);
  works.emplace_back([state, arriving, format, counts = lane.recv] {
    state->exchange.finish();
    state->received.for_pieces(
        arriving, counts, format,
        [](const Tensor& to, const Tensor& from, DispatchPayload payload) { unpack_rows(from, to, payload); });
    *state = {};
  });
  return arriving;
}

Tensor RowCarrier::start_gather(const Tensor& rows, const std::vector<int64_t>& counts,
                                std::vector<comm::Work>& works) const {
  return payload_ == DispatchPayload::kSame ? start_pieces(group_, rows, counts, works)
                                            : start_gather_rounded(rows, counts, works);
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
  // A vector is rows of one number.
  const Tensor as_rows = rows.dim() == 1 ? rows.unsqueeze(1) : rows;
  state->sent = at::empty({as_rows.size(0), row_bytes(as_rows, payload_)}, at::kByte);
  pack_rows(as_rows, state->sent, payload_);
  state->received = start_pieces(group_, state->sent, counts, state->exchanges);
  state->exact = start_pieces(host_, rows, near_counts, state->exchanges);
  Tensor all = rows_like(rows, sum_of(counts));
  works.emplace_back([state, all, near_counts, first, payload = payload_] {
    for (comm::Work& exchange : state->exchanges) exchange.finish();
    unpack_rows(state->received, all.dim() == 1 ? all.unsqueeze(1) : all, payload);
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
