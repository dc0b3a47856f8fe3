// SPDX-License-Identifier: Apache-2.0
// What a failing rank leaves behind: one block of text for the user and one exit code for the job.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace conclave::comm {

struct Failure {
  int code = 0;  // an ExitCode; 0 = the rank has not failed, or has not said so in time
  std::string message;
};

// "rank 3 on a", "ranks 0-1 on a, 4 on b". `hosts` is by rank.
std::string name_ranks(const std::vector<int>& ranks, const std::vector<std::string>& hosts);

// `error` as a failure: conclave's own errors keep their code; anything else is a bug (70).
Failure failure_of(std::exception_ptr error);

// The failure to act on: the lowest rank's, but a lost peer only when nothing else is known. At least one rank has
// failed.
const Failure& first_cause(const std::vector<Failure>& by_rank);

// One block for all failures. Equal ones are said once; the message alone when every rank failed alike, otherwise each
// behind "ranks 2-3 on host: ". Lost peers are left out when another cause is known. `hosts` is by rank.
std::string describe_failures(const std::vector<Failure>& by_rank, const std::vector<std::string>& hosts);

}  // namespace conclave::comm
