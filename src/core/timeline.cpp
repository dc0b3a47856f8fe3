// SPDX-License-Identifier: Apache-2.0
#include "core/timeline.h"

#include <fmt/format.h>

namespace conclave {
namespace {

// Microseconds, the unit of the format.
double us(int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; }

}  // namespace

void Timeline::start() {
  events_.clear();
  start_ = Clock::now();
}

int64_t Timeline::now() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_.value()).count();
}

std::string Timeline::json(int rank) const {
  std::string text = fmt::format(R"({{"ph":"M","name":"process_name","pid":{0},"args":{{"name":"rank {0}"}}}},)"
                                 "\n"
                                 R"({{"ph":"M","name":"thread_name","pid":{0},"tid":0,"args":{{"name":"work"}}}},)"
                                 "\n",
                                 rank);
  int64_t id = 0;
  for (const Event& e : events_) {
    std::string label = fmt::format(R"("name":"{}","cat":"{}","pid":{},"tid":0)", e.name, e.phase, rank);
    if (e.micro_batch >= 0)
      label += fmt::format(R"(,"args":{{"phase":"{}","micro-batch":{}}})", e.phase, e.micro_batch);
    if (e.exchange) {
      // Exchanges overlap one another, so they are pairs of events with a number of their own.
      const std::string pair = fmt::format(R"({},"id2":{{"local":"{}"}})", label, id++);
      text += fmt::format("{{\"ph\":\"b\",\"ts\":{:.3f},{}}},\n", us(e.begin), pair);
      text += fmt::format("{{\"ph\":\"e\",\"ts\":{:.3f},{}}},\n", us(e.end), pair);
    } else {
      text +=
          fmt::format("{{\"ph\":\"X\",\"ts\":{:.3f},\"dur\":{:.3f},{}}},\n", us(e.begin), us(e.end - e.begin), label);
    }
  }
  return text;
}

Span::Span(Timeline* timeline, std::string_view name, std::string_view phase, int64_t micro_batch)
    : timeline_(timeline != nullptr && timeline->on() ? timeline : nullptr) {
  if (timeline_ == nullptr) return;
  event_ = {.name = std::string(name), .phase = phase, .micro_batch = micro_batch, .begin = timeline_->now()};
}

Span::~Span() {
  if (timeline_ == nullptr || !timeline_->on()) return;
  event_.end = timeline_->now();
  timeline_->add(std::move(event_));
}

}  // namespace conclave
