// SPDX-License-Identifier: Apache-2.0
// Points at which ranks agree how local work went. An error on one rank becomes the same error on all of them, so that
// no rank is left alone in a collective. Does not cover a lost peer: that is the transport's CommError.
#pragma once

#include <functional>
#include <string>

#include "comm/group.h"

namespace conclave::checkpoint {

// Collective. Runs `work`, which must not communicate, on every rank. If it threw on any, every rank throws the error
// of the lowest such rank, with its exit code (and that rank's number in front when the group has several).
void agree(const comm::Group& group, const std::function<void()>& work);

// Collective. Runs `work` on rank 0 only, with agreement as above, and returns its text on every rank.
std::string from_rank_zero(const comm::Group& group, const std::function<std::string()>& work);

// Throws the error type that belongs to `code`.
[[noreturn]] void throw_error(int code, const std::string& message);

}  // namespace conclave::checkpoint
