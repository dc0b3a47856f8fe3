// SPDX-License-Identifier: Apache-2.0
// A transport that remembers its all-to-alls and plays them back without a network: what a program would take if
// exchanges were free, and what the exchanges take alone. For measurements; the other verbs pass through.
#pragma once

#include <memory>
#include <vector>

#include "comm/group.h"

namespace conclave::app {

class Recording {
 public:
  enum class Mode {
    kPass,    // as if it were not there
    kRecord,  // remembers
    kReplay,  // gives what it remembers, in the order of the calls, and sends nothing
  };
  struct Exchange {
    comm::Group group;
    std::vector<int64_t> send_bytes, recv_bytes;
    std::vector<std::byte> received;
  };

  Mode mode() const { return mode_; }
  // kRecord begins an empty record, kReplay begins it from the front.
  void set_mode(Mode mode);
  // To be filled in by the call under way.
  std::shared_ptr<Exchange> remember(comm::Group group);
  const Exchange& next();
  // Does all exchanges of the record, one after the other. Collective.
  void communicate() const;
  // What this rank sends to others.
  int64_t bytes_sent() const;

 private:
  Mode mode_ = Mode::kPass;
  std::vector<std::shared_ptr<Exchange>> exchanges_;
  size_t next_ = 0;
};

// `group` and all its splits over `recording`.
comm::Group recorded(const comm::Group& group, std::shared_ptr<Recording> recording);

}  // namespace conclave::app
