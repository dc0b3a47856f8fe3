// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>

#include "app/doctor_report.h"
#include "comm/world.h"

namespace conclave::app {
namespace {

struct DoctorCommand {
  DoctorOptions options;
  std::string json;
};

void write_json(const std::string& path, const nlohmann::json& json) {
  std::ofstream out(path);
  out << json.dump(2) << "\n";
  out.flush();
  if (!out) throw IoError("cannot write {}: check the directory and the space left", path);
}

int doctor_in(comm::World& world, const DoctorCommand& command) {
  const auto diagnosis = diagnose(world.group(), world.hosts(), world.cores(), command.options);
  const auto findings = findings_of(diagnosis);
  if (world.rank() == 0) {
    fmt::print("{}", report_text(diagnosis, findings));
    if (!command.json.empty()) write_json(command.json, report_json(diagnosis, findings));
  }
  const auto fault =
      std::find_if(findings.begin(), findings.end(), [](const auto& f) { return f.code != ExitCode::kDone; });
  return static_cast<int>(fault == findings.end() ? ExitCode::kDone : fault->code);
}

}  // namespace

void add_doctor_command(CLI::App& app, std::function<int()>& run) {
  const auto command = std::make_shared<DoctorCommand>();
  auto* sub = app.add_subcommand("doctor", "look at the hosts, their limits and the links between them");
  sub->add_option("--directory", command->options.directory, "where runs are written (default: runs)");
  sub->add_option("--largest", command->options.largest, "largest message in bytes (default: 16 MiB)")
      ->check(CLI::Range(1 << 10, 1 << 30));
  sub->add_option("--seconds", command->options.seconds, "for each measurement, about (default: 0.1)")
      ->check(CLI::Range(0.001, 60.0));
  sub->add_flag("!--no-compute", command->options.compute, "leave out the matrix products");
  sub->add_option("--json", command->json, "write everything to this file as well");
  sub->footer(
      "Exit code 0: a run can work here (warnings do not count); 74: --directory cannot be written or is not shared "
      "by\n"
      "the hosts; 78: program or MPI differ between ranks; 76: a peer was lost.\n"
      "Example: this machine alone, then two ranks on each host of a cluster\n"
      "  conclave doctor\n"
      "  launch/run --hostfile hosts 8 doctor --directory /shared/runs --json doctor.json");
  sub->callback([command, &run] {
    run = [command] { return comm::run_world([&](comm::World& world) { return doctor_in(world, *command); }); };
  });
}

}  // namespace conclave::app
