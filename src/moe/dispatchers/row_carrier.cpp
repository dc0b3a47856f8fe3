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

Tensor gather_as_is(const comm::Group& group, const Tensor& rows, const std::vector<int64_t>& counts) {
  Tensor all = rows_like(rows, sum_of(counts));
  const auto sizes = scaled(counts, width_of(rows) * static_cast<int64_t>(rows.element_size()));
  const auto bytes = [](const Tensor& t) { return std::span(static_cast<std::byte*>(t.data_ptr()), t.nbytes()); };
  group.all_gather_v(std::span<const std::byte>(bytes(rows)), bytes(all), std::span<const int64_t>(sizes));
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

Tensor RowCarrier::gather(const Tensor& rows, const std::vector<int64_t>& counts) const {
  return rounds_ ? gather_rounded(rows, counts) : gather_as_is(group_, rows, counts);
}

// All ranks' rows rounded, then those of this host as they are.
Tensor RowCarrier::gather_rounded(const Tensor& rows, const std::vector<int64_t>& counts) const {
  Tensor all = gather_as_is(group_, rows.to(at::kBFloat16), counts).to(rows.scalar_type());
  const Tensor exact = gather_near(rows, counts);
  int64_t first = 0, first_near = 0;
  for (int r = 0; r < group_.size(); ++r) {
    if (near(r)) {
      all.narrow(0, first, counts[r]).copy_(exact.narrow(0, first_near, counts[r]));
      first_near += counts[r];
    }
    first += counts[r];
  }
  return all;
}

Tensor RowCarrier::gather_near(const Tensor& rows, const std::vector<int64_t>& counts) const {
  std::vector<int64_t> of_host;
  for (int r = 0; r < group_.size(); ++r)
    if (near(r)) of_host.push_back(counts[r]);
  return gather_as_is(host_, rows, of_host);
}

}  // namespace conclave::moe
