// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace conclave::app {
namespace {

constexpr size_t kMostLinks = 28;  // of 8 hosts; beyond that only the slowest

std::string bytes_text(int64_t bytes) {
  if (bytes < 0) return "no limit";
  if (bytes >= 1000000000) return fmt::format("{:.1f} GB", static_cast<double>(bytes) / 1e9);
  if (bytes >= 1000000) return fmt::format("{:.0f} MB", static_cast<double>(bytes) / 1e6);
  return fmt::format("{} kB", bytes / 1000);
}

std::string size_text(int64_t bytes) {
  return bytes >= 1 << 20 ? fmt::format("{} MiB", bytes >> 20) : fmt::format("{} KiB", bytes >> 10);
}

std::string time_text(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.1f} ms", seconds * 1e3);
  return fmt::format("{:.2f} s", seconds);
}

std::string rate_text(double bytes_per_second) {
  const double mega = bytes_per_second / 1e6;
  return mega < 100 ? fmt::format("{:.1f} MB/s", mega) : fmt::format("{:.0f} MB/s", mega);
}

std::string clock_text(const ClockFigures& clock) {
  return fmt::format("{}{} +-{}", clock.offset < -0.5e-6 ? "-" : "+", time_text(std::abs(clock.offset)),
                     time_text(clock.error));
}

std::string heading(const Diagnosis& d) {
  const auto& facts = d.facts.front();
  return fmt::format("{}, {}\n{} rank{} on {} host{}, transport {}\n", facts.program, facts.mpi, d.facts.size(),
                     d.facts.size() == 1 ? "" : "s", d.hosts.size(), d.hosts.size() == 1 ? "" : "s", d.transport);
}

std::string host_table(const Diagnosis& d) {
  size_t width = 4;
  for (const auto& name : d.hosts) width = std::max(width, name.size());
  std::string text =
      fmt::format("\n{:<{}}  ranks  cores  threads    memory      free  /dev/shm   files    locked  {:<17}\n", "host",
                  width, d.hosts.size() > 1 ? "clock" : "");
  for (size_t h = 0; h < d.hosts.size(); ++h) {
    const auto first = std::find(d.host_of.begin(), d.host_of.end(), static_cast<int>(h)) - d.host_of.begin();
    const auto ranks = std::count(d.host_of.begin(), d.host_of.end(), static_cast<int>(h));
    const auto& f = d.facts[first];
    text += fmt::format("{:<{}}  {:>5}  {:>5}  {:>7}  {:>8}  {:>8}  {:>8}  {:>6}  {:>8}  {}\n", f.host, width, ranks,
                        f.cores, f.threads, bytes_text(f.memory), bytes_text(f.free),
                        f.shared < 0 ? "none" : bytes_text(f.shared), f.files < 0 ? "any" : std::to_string(f.files),
                        bytes_text(f.locked), h == 0 ? "" : clock_text(d.clocks[first]));
  }
  return text + fmt::format("processor  {}\n", d.facts.front().cpu);
}

std::string speed_lines(const Diagnosis& d) {
  const bool shared = d.files.shared();
  std::string text = fmt::format("directory  {}: {}\n", d.directory.string(),
                                 !shared              ? "NOT usable by all ranks, see below"
                                 : d.hosts.size() > 1 ? "shared by all hosts"
                                                      : "can be written");
  if (d.gflops.empty()) return text;
  auto sorted = d.gflops;
  std::sort(sorted.begin(), sorted.end());
  text += fmt::format("compute    {:.1f} GFLOP/s a rank, fp32, all at the same time", sorted[sorted.size() / 2]);
  if (sorted.size() > 1) {
    const auto slowest = std::min_element(d.gflops.begin(), d.gflops.end()) - d.gflops.begin();
    text += fmt::format("; slowest {:.1f}, {}", sorted.front(), d.name_of(static_cast<int>(slowest)));
  }
  return text + "\n";
}

// The slowest first when not all are shown.
std::string link_table(const std::string& title, std::vector<LinkFigures> links,
                       const std::vector<std::string>& names) {
  if (links.empty()) return "";
  const size_t all = links.size();
  if (all > kMostLinks) {
    std::sort(links.begin(), links.end(), [](const auto& a, const auto& b) { return a.bandwidth < b.bandwidth; });
    links.resize(kMostLinks);
  }
  std::string text = fmt::format("\n{:<32} {:>9}  {:>12}\n", title, "latency", "bandwidth");
  for (const auto& link : links)
    text += fmt::format("  {:<30} {:>9}  {:>12}\n", names[link.a] + " - " + names[link.b], time_text(link.latency),
                        rate_text(link.bandwidth));
  if (all > links.size()) text += fmt::format("  the {} slowest of {}\n", links.size(), all);
  return text;
}

std::string collective_table(const Diagnosis& d) {
  if (d.all_within.empty() && d.all_between.empty()) return "";
  const auto cells = [](const std::vector<CollectiveFigures>& figures, size_t i, int ranks) {
    if (figures.empty()) return std::string();
    return fmt::format("{:>10} {:>12} {:>10} {:>12}", time_text(figures[i].all_to_all),
                       rate_text(all_to_all_rate(figures[i], ranks)), time_text(figures[i].all_reduce),
                       rate_text(all_reduce_rate(figures[i], ranks)));
  };
  const int hosts = static_cast<int>(d.hosts.size());
  const auto title = [](const std::string& where) { return fmt::format("  {:<47}", where); };
  const std::string kinds = fmt::format("  {:>23} {:>23}", "all-to-all", "all-reduce");
  std::string first = fmt::format("\n{:<8}", "message"), second(8, ' '), rows;
  if (!d.all_within.empty()) {
    first += title(fmt::format("within a host, {} ranks", d.largest_host));
    second += kinds;
  }
  if (!d.all_between.empty()) {
    first += title(fmt::format("between {} hosts, a rank of each", hosts));
    second += kinds;
  }
  const size_t sizes = std::max(d.all_within.size(), d.all_between.size());
  for (size_t i = 0; i < sizes; ++i) {
    rows += fmt::format("{:<8}", size_text((d.all_within.empty() ? d.all_between : d.all_within)[i].bytes));
    if (!d.all_within.empty()) rows += "  " + cells(d.all_within, i, d.largest_host);
    if (!d.all_between.empty()) rows += "  " + cells(d.all_between, i, hosts);
    rows += "\n";
  }
  return first + "\n" + second + "\n" + rows +
         "message: to each peer, or summed; time of the slowest rank, median; rate: what each rank sends\n";
}

// Columns leave spaces at the ends of lines.
std::string without_trailing_spaces(const std::string& text) {
  std::string clean;
  for (const char c : text) {
    if (c == '\n') clean.erase(clean.find_last_not_of(' ') + 1);
    clean += c;
  }
  return clean;
}

std::vector<std::string> rank_names(const Diagnosis& d) {
  std::vector<std::string> names;
  for (size_t r = 0; r < d.host_of.size(); ++r) names.push_back(d.name_of(static_cast<int>(r)));
  return names;
}

}  // namespace

std::string report_text(const Diagnosis& d, const std::vector<Finding>& findings) {
  std::string text = heading(d) + host_table(d) + speed_lines(d);
  text += link_table("between hosts", d.between, d.hosts);
  text += link_table("within a host", d.within, rank_names(d));
  text += collective_table(d);
  text += findings.empty() ? "\nnothing to complain about\n" : "\n";
  for (const auto& finding : findings)
    text += fmt::format("{}: {}\n", finding.code == ExitCode::kDone ? "warning" : "FAULT", finding.text);
  return without_trailing_spaces(text);
}

nlohmann::json report_json(const Diagnosis& d, const std::vector<Finding>& findings) {
  nlohmann::json json{{"transport", d.transport}, {"hosts", d.hosts}, {"directory", d.directory.string()}};
  json["directory_shared"] = d.files.shared();
  for (size_t r = 0; r < d.facts.size(); ++r) {
    auto rank = to_json(d.facts[r]);
    rank["clock_offset_seconds"] = d.clocks[r].offset;
    rank["clock_error_seconds"] = d.clocks[r].error;
    if (!d.gflops.empty()) rank["gflops"] = d.gflops[r];
    json["ranks"].push_back(std::move(rank));
  }
  json["links_between_hosts"] = json["links_within_hosts"] = json["findings"] = nlohmann::json::array();
  for (const auto& link : d.between) json["links_between_hosts"].push_back(to_json(link, d.hosts));
  for (const auto& link : d.within) json["links_within_hosts"].push_back(to_json(link, rank_names(d)));
  json["within_a_host"] = to_json(d.all_within, d.largest_host);
  json["between_hosts"] = to_json(d.all_between, static_cast<int>(d.hosts.size()));
  for (const auto& finding : findings)
    json["findings"].push_back({{"exit_code", static_cast<int>(finding.code)}, {"text", finding.text}});
  return json;
}

}  // namespace conclave::app
