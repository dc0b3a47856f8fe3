// SPDX-License-Identifier: Apache-2.0
// All that `conclave doctor` measures, in one place, and what is wrong with it. How it is measured say the other
// doctor_*.h, how it is printed doctor_report.h.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "app/doctor_collectives.h"
#include "app/doctor_directory.h"
#include "app/doctor_facts.h"
#include "app/doctor_links.h"
#include "core/error.h"

namespace conclave::app {

struct DoctorOptions {
  std::filesystem::path directory = "runs";
  double seconds = 0.1;        // for each measurement, about
  int64_t largest = 16 << 20;  // message, bytes
  bool compute = true;         // matrix products as well
};

struct Diagnosis {
  std::string transport;
  std::vector<RankFacts> facts;      // by rank
  std::vector<std::string> hosts;    // in the order of their first ranks
  std::vector<int> host_of;          // by rank: index into hosts
  std::vector<ClockFigures> clocks;  // by rank
  std::filesystem::path directory;
  DirectoryFigures files;
  std::vector<double> gflops;                  // by rank, all at the same time; empty: not measured
  std::vector<LinkFigures> between;            // hosts, by one rank each
  std::vector<LinkFigures> within;             // ranks of one host, all hosts at the same time
  std::vector<CollectiveFigures> all_between;  // one rank of each host; empty for one host
  std::vector<CollectiveFigures> all_within;   // ranks of a host: the slowest host's; empty where no host has two
  int largest_host = 1;                        // ranks on it

  std::string name_of(int rank) const;  // "rank 3 on h2"
};

// Collective; the same diagnosis on every rank. `cores` is this rank's share of its host's.
Diagnosis diagnose(const comm::Group& group, const std::vector<std::string>& hosts, int cores,
                   const DoctorOptions& options);

struct Finding {
  ExitCode code = ExitCode::kDone;  // kDone: a warning; else no run will work, and this is why
  std::string text;                 // what, where, what to do
};

std::vector<Finding> findings_of(const Diagnosis& diagnosis);

}  // namespace conclave::app
