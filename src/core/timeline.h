// SPDX-License-Identifier: Apache-2.0
// What one rank did when, for people to look at: spans of work, and exchanges under way beside them. Written as Chrome
// trace events (chrome://tracing, ui.perfetto.dev). Off, it costs a comparison; it gathers nothing from other ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

class Timeline {
 public:
  using Clock = std::chrono::steady_clock;
  struct Event {
    std::string name;            // "layers.3.attention"
    std::string_view phase;      // "forward"; text that lives for ever
    int64_t micro_batch = -1;    // of the step; -1 = none
    bool exchange = false;       // on the track of exchanges, where events overlap
    int64_t begin = 0, end = 0;  // nanoseconds since start()
  };

  bool on() const { return start_.has_value(); }
  // Records from now on, and forgets what it has. The ranks of a run call it right after a barrier: their zeros are the
  // same moment.
  void start();
  void stop() { start_.reset(); }
  int64_t now() const;
  void add(Event event) { events_.push_back(std::move(event)); }
  const std::vector<Event>& events() const { return events_; }
  // The events as members of a JSON array, each followed by a comma and a newline; `rank` is the process they are of.
  std::string json(int rank) const;

 private:
  std::optional<Clock::time_point> start_;
  std::vector<Event> events_;
};

// One span of work, from construction to destruction. A null timeline is one that is off.
class Span {
 public:
  Span(Timeline* timeline, std::string_view name, std::string_view phase, int64_t micro_batch = -1);
  ~Span();
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  Timeline* timeline_;
  Timeline::Event event_;
};

}  // namespace conclave
