// SPDX-License-Identifier: Apache-2.0
// Named places where a test makes the program fail on purpose. Compiled in always, idle unless the environment says
// CONCLAVE_FAILPOINTS=name:hit[:rank]=action[,...]; actions: kill, sleep, errno, nan. `hit` counts from 1.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace conclave {

class Failpoints {
 public:
  Failpoints() = default;  // none
  // Parses `text` (the variable's value; may be empty). Throws UsageError on a malformed entry.
  Failpoints(const std::string& text, int rank);

  // Counts a visit of `name`. `kill` ends this process with SIGKILL, `sleep` waits an hour, `errno` throws IoError as
  // if the device were full. Returns true when the action is `nan` and the caller should poison its value.
  bool hit(const std::string& name);
  // Visits counted so far, by name: the harness asserts that each one was reached.
  const std::map<std::string, int>& visits() const { return visits_; }

 private:
  struct Plan {
    std::string name;
    int hit;
    std::string action;
  };
  std::vector<Plan> plans_;
  std::map<std::string, int> visits_;
};

}  // namespace conclave
