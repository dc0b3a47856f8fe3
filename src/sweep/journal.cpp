// SPDX-License-Identifier: Apache-2.0
#include "sweep/journal.h"

#include <fmt/chrono.h>

#include <cerrno>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/error.h"

namespace conclave::sweep {
namespace {

using Json = nlohmann::ordered_json;

void append(const std::filesystem::path& journal, Json event) {
  event["time"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  // One write in append mode. A line cut short by a kill is closed by the line end that begins the next.
  std::ofstream file(journal, std::ios::app);
  file << fmt::format("\n{}\n", event.dump(-1, ' ', false, Json::error_handler_t::replace)) << std::flush;
  if (!file) {
    throw IoError("cannot write {}: {}; make room and repeat the command", journal.string(),
                  std::generic_category().message(errno));
  }
}

}  // namespace

bool Ending::failed() const { return code != 0 && code != static_cast<int>(ExitCode::kRequeue); }

void record_start(const std::filesystem::path& journal, pid_t process, int64_t ticks) {
  append(journal, {{"event", "start"}, {"process", process}, {"ticks", ticks}});
}

void record_end(const std::filesystem::path& journal, const Ending& ending) {
  append(journal, {{"event", "end"}, {"code", ending.code}, {"signal", ending.signal}, {"tail", ending.tail}});
}

History read_history(const std::filesystem::path& journal) {
  History history;
  std::ifstream file(journal);
  for (std::string line; std::getline(file, line);) {
    const Json event = Json::parse(line, nullptr, false);
    if (!event.is_object() || !event.contains("event")) continue;
    if (event["event"] == "start") {
      ++history.starts;
      history.process = event.value("process", 0);
      history.ticks = event.value("ticks", int64_t{0});
      history.ending.reset();
    } else {
      history.ending = Ending{event.value("code", 0), event.value("signal", 0), event.value("tail", "")};
    }
  }
  return history;
}

}  // namespace conclave::sweep
