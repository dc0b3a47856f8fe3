// SPDX-License-Identifier: Apache-2.0
#include "core/failpoints.h"

#include <csignal>
#include <sstream>
#include <thread>

#include "core/error.h"

namespace conclave {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

int number(const std::string& text, const std::string& entry) {
  size_t used = 0;
  int value = -1;
  try {
    value = std::stoi(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || value < 0)
    throw UsageError("CONCLAVE_FAILPOINTS: '{}' is not name:hit[:rank]=action", entry);
  return value;
}

}  // namespace

Failpoints::Failpoints(const std::string& text, int rank) {
  for (const auto& entry : split(text, ',')) {
    const auto sides = split(entry, '=');
    const auto where = sides.empty() ? std::vector<std::string>{} : split(sides[0], ':');
    if (sides.size() != 2 || where.size() < 2 || where.size() > 3)
      throw UsageError("CONCLAVE_FAILPOINTS: '{}' is not name:hit[:rank]=action", entry);
    const auto& action = sides[1];
    if (action != "kill" && action != "sleep" && action != "errno" && action != "nan")
      throw UsageError("CONCLAVE_FAILPOINTS: unknown action '{}'; use kill, sleep, errno or nan", action);
    if (where.size() == 3 && number(where[2], entry) != rank) continue;
    plans_.push_back({where[0], number(where[1], entry), action});
  }
}

bool Failpoints::hit(const std::string& name) {
  const int visit = ++visits_[name];
  for (const auto& plan : plans_) {
    if (plan.name != name || plan.hit != visit) continue;
    if (plan.action == "kill") std::raise(SIGKILL);
    if (plan.action == "sleep") std::this_thread::sleep_for(std::chrono::hours(1));
    if (plan.action == "errno") throw IoError("failpoint {}: No space left on device", name);
    if (plan.action == "nan") return true;
  }
  return false;
}

}  // namespace conclave
