// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "app/doctor_diagnosis.h"
#include "comm/failure.h"

namespace conclave::app {
namespace {

constexpr double kSlowRank = 0.6;            // share of the median speed
constexpr double kSmallHost = 0.9;           // share of the median memory
constexpr double kClockSeconds = 1;          // logs of two hosts cannot be put side by side
constexpr int64_t kSharedMemory = 64 << 20;  // bytes in /dev/shm for each rank

class Findings {
 public:
  explicit Findings(const Diagnosis& diagnosis) : d_(diagnosis) {}

  std::vector<Finding> take() {
    same("program", &RankFacts::program, ExitCode::kConfig, "Build once and start that binary on every host.");
    same("MPI library", &RankFacts::mpi, ExitCode::kConfig, "Install the same Open MPI on every host.");
    same("processor", &RankFacts::cpu, ExitCode::kDone,
         "Runs work, but results keep their bits on one kind of processor only (docs/numerics.md).");
    directory();
    resources();
    settings();
    speeds();
    return std::move(found_);
  }

 private:
  void add(ExitCode code, const std::string& text) {
    Finding finding;
    finding.code = code;
    finding.text = text;
    found_.push_back(finding);
  }
  void warn(const std::string& text) { add(ExitCode::kDone, text); }

  std::string ranks_text(const std::vector<int>& ranks) const {
    std::vector<std::string> hosts;
    for (const int host : d_.host_of) hosts.push_back(d_.hosts[host]);
    return comm::name_ranks(ranks, hosts);
  }

  // The ones to name are those without the commonest value.
  void same(const char* what, std::string RankFacts::*member, ExitCode code, const char* advice) {
    std::map<std::string, std::vector<int>> by_value;
    for (size_t r = 0; r < d_.facts.size(); ++r) by_value[d_.facts[r].*member].push_back(static_cast<int>(r));
    if (by_value.size() < 2) return;
    const auto common = std::max_element(by_value.begin(), by_value.end(), [](const auto& a, const auto& b) {
      return a.second.size() < b.second.size();
    });
    for (const auto& [value, ranks] : by_value)
      if (value != common->first)
        add(code, fmt::format("another {} on {}: {}; elsewhere {}. {}", what, ranks_text(ranks), value, common->first,
                              advice));
  }

  void directory() {
    const auto& files = d_.files;
    for (size_t r = 0; r < files.problems.size(); ++r)
      if (!files.problems[r].empty())
        add(ExitCode::kIo, fmt::format("{}, directory {}: {}. Checkpoints of a run there will fail.",
                                       d_.name_of(static_cast<int>(r)), d_.directory.string(), files.problems[r]));
    std::vector<int> blind;
    for (size_t r = 0; r < files.misses.size(); ++r)
      if (!files.misses[r].empty()) blind.push_back(static_cast<int>(r));
    if (blind.empty()) return;
    add(ExitCode::kIo,
        fmt::format("directory {} is not shared by all hosts: {} cannot see what all others wrote there, {} for one "
                    "nothing of {}. Put runs on a file system that is (--directory).",
                    d_.directory.string(), ranks_text(blind), d_.name_of(blind.front()),
                    ranks_text(files.misses[blind.front()])));
  }

  void resources() {
    std::vector<int64_t> memories;
    for (const auto& facts : d_.facts) memories.push_back(facts.memory);
    std::nth_element(memories.begin(), memories.begin() + std::ssize(memories) / 2, memories.end());
    const auto usual = static_cast<double>(memories[memories.size() / 2]);
    for (size_t h = 0; h < d_.hosts.size(); ++h) {
      const int64_t ranks = std::count(d_.host_of.begin(), d_.host_of.end(), static_cast<int>(h));
      const auto first = std::find(d_.host_of.begin(), d_.host_of.end(), static_cast<int>(h)) - d_.host_of.begin();
      host(d_.facts[first], ranks, usual);
    }
  }

  void host(const RankFacts& facts, int64_t ranks, double usual_memory) {
    const auto total = static_cast<int64_t>(d_.facts.size());
    if (static_cast<double>(facts.memory) < kSmallHost * usual_memory)
      warn(fmt::format("host {} has {:.1f} GB of memory, others {:.1f}", facts.host,
                       static_cast<double>(facts.memory) / 1e9, usual_memory / 1e9));
    if (ranks > 1 && facts.shared < ranks * kSharedMemory)
      warn(fmt::format(
          "host {}: {} MB free in /dev/shm for {} ranks; Open MPI and shared exchanges need some {} MB "
          "(containers: --shm-size)",
          facts.host, std::max<int64_t>(facts.shared, 0) / 1000000, ranks, ranks * kSharedMemory / 1000000));
    if (facts.files >= 0 && facts.files < 256 + 4 * total)
      warn(fmt::format("host {}: at most {} open files; {} ranks want {} (ulimit -n)", facts.host, facts.files, total,
                       256 + 4 * total));
    if (ranks * facts.threads > facts.cores && facts.yields != "1" && total > 1)
      warn(fmt::format(
          "host {}: {} ranks of {} threads on {} cores, and who waits does not give way: use launch/run, or "
          "--mca mpi_yield_when_idle 1",
          facts.host, ranks, facts.threads, facts.cores));
  }

  void settings() {
    if (d_.hosts.size() < 2) return;
    const auto& facts = d_.facts.front();
    if (facts.links != "2")
      warn(
          "one TCP connection between two ranks makes sending and receiving take turns: use launch/run, or --mca "
          "btl_tcp_links 2");
    if (facts.keepalive.empty())
      warn(
          "a host that vanishes would not be noticed for minutes: use launch/run, or --mca oob_tcp_keepalive_time 4 "
          "and "
          "its companions (docs/comm.md)");
  }

  void speeds() {
    for (size_t r = 1; r < d_.clocks.size(); ++r) {
      const auto& clock = d_.clocks[r];
      const bool first = std::find(d_.host_of.begin(), d_.host_of.end(), d_.host_of[r]) - d_.host_of.begin() ==
                         static_cast<ptrdiff_t>(r);
      if (first && std::abs(clock.offset) > kClockSeconds + clock.error)
        warn(
            fmt::format("host {}: its clock is {:.1f} s {} that of {}: nothing compares clocks, but logs will not fit "
                        "together (run NTP)",
                        d_.hosts[d_.host_of[r]], std::abs(clock.offset), clock.offset > 0 ? "ahead of" : "behind",
                        d_.hosts.front()));
    }
    if (d_.gflops.size() > 2 && !is_crowded()) {
      auto sorted = d_.gflops;
      std::sort(sorted.begin(), sorted.end());
      const double usual = sorted[sorted.size() / 2];
      for (size_t r = 0; r < d_.gflops.size(); ++r)
        if (d_.gflops[r] < kSlowRank * usual)
          warn(fmt::format(
              "{} computes with {:.1f} GFLOP/s, others with {:.1f}: look for other work, throttling or fewer "
              "cores there; the whole run goes at its pace",
              d_.name_of(static_cast<int>(r)), d_.gflops[r], usual));
    }
    std::vector<std::string> hosts;
    for (const auto& name : d_.hosts) hosts.push_back("host " + name);
    for (auto& text : odd_links(d_.between, hosts)) warn(text + ": look at its cable, port and network card");
    if (!is_crowded()) odd_ranks();
  }

  // With more ranks than cores times say which rank the scheduler let wait.
  bool is_crowded() const {
    const auto most = std::max_element(d_.facts.begin(), d_.facts.end(),
                                       [](const auto& a, const auto& b) { return a.cores > b.cores; });
    return d_.largest_host > most->cores;
  }

  // Host by host: a link within one is not compared with those of another.
  void odd_ranks() {
    for (size_t h = 0; h < d_.hosts.size(); ++h) {
      std::vector<int> ranks;
      std::vector<std::string> names;
      for (size_t r = 0; r < d_.host_of.size(); ++r)
        if (d_.host_of[r] == static_cast<int>(h)) {
          ranks.push_back(static_cast<int>(r));
          names.push_back(d_.name_of(static_cast<int>(r)));
        }
      const auto place = [&](int r) {
        return static_cast<int>(std::find(ranks.begin(), ranks.end(), r) - ranks.begin());
      };
      std::vector<LinkFigures> links;
      for (const auto& link : d_.within)
        if (d_.host_of[link.a] == static_cast<int>(h))
          links.push_back({place(link.a), place(link.b), link.latency, link.bandwidth});
      for (auto& text : odd_links(links, names)) warn(text + ": look for other work on its cores");
    }
  }

  const Diagnosis& d_;
  std::vector<Finding> found_;
};

}  // namespace

std::vector<Finding> findings_of(const Diagnosis& diagnosis) { return Findings(diagnosis).take(); }

}  // namespace conclave::app
