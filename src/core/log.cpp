// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"

#include <fmt/format.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

namespace conclave {
namespace {

// Nothing in front of ordinary lines; what needs attention says so.
class Attention : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& out) override {
    if (message.level == spdlog::level::warn) out.append(std::string_view("WARN "));
    if (message.level >= spdlog::level::err) out.append(std::string_view("ERROR "));
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override { return std::make_unique<Attention>(); }
};

}  // namespace

std::shared_ptr<Log> make_log(int rank) {
  auto log = std::make_shared<Log>(fmt::format("rank {}", rank));
  if (rank == 0) {
    auto console = std::make_shared<spdlog::sinks::stdout_sink_mt>();
    auto pattern = std::make_unique<spdlog::pattern_formatter>();
    pattern->add_flag<Attention>('*').set_pattern("%*%v");
    console->set_formatter(std::move(pattern));
    log->sinks().push_back(console);
  }
  log->flush_on(spdlog::level::info);
  // A disk that takes no more log lines is reported once, by what must be written there: metrics and checkpoints.
  log->set_error_handler([](const std::string&) {});
  return log;
}

std::shared_ptr<Log> make_silent_log() {
  return std::make_shared<Log>("silent", std::make_shared<spdlog::sinks::null_sink_mt>());
}

void add_log_file(Log& log, const std::filesystem::path& directory, int rank) {
  std::filesystem::create_directories(directory);
  const auto path = directory / fmt::format("rank-{:05}.log", rank);
  auto file = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path.string());
  file->set_pattern("%Y-%m-%dT%H:%M:%S.%e [%n] %l %v");
  log.sinks().push_back(file);
}

}  // namespace conclave
