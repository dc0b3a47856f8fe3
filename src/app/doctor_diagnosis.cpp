// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_diagnosis.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "app/gemm_speed.h"

namespace conclave::app {
namespace {

constexpr int64_t kSizes[] = {1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20};

// Pieces of plain figures from every rank, in rank order.
template <typename T>
std::vector<std::vector<T>> gather_lists(const comm::Group& group, const std::vector<T>& own) {
  std::vector<std::vector<T>> lists;
  for (const auto& bytes : group.all_gather_text({reinterpret_cast<const char*>(own.data()), own.size() * sizeof(T)})) {
    lists.emplace_back(bytes.size() / sizeof(T));
    std::memcpy(lists.back().data(), bytes.data(), bytes.size());
  }
  return lists;
}

void index_hosts(Diagnosis& diagnosis, const std::vector<std::string>& names) {
  for (const auto& name : names) {
    auto& hosts = diagnosis.hosts;
    const auto found = std::find(hosts.begin(), hosts.end(), name);
    diagnosis.host_of.push_back(static_cast<int>(found - hosts.begin()));
    if (found == hosts.end()) hosts.push_back(name);
  }
  for (size_t h = 0; h < diagnosis.hosts.size(); ++h)
    diagnosis.largest_host =
        std::max(diagnosis.largest_host,
                 static_cast<int>(std::count(diagnosis.host_of.begin(), diagnosis.host_of.end(), static_cast<int>(h))));
}

double own_gflops(int threads) {
  at::set_num_threads(threads);
  const std::vector<Product> product{{"speed", 512, 512, 512}};
  measure(product, 0.02);  // threads and clock come up to speed
  return measure(product, 0.05)[0].best_gflops;
}

std::vector<int64_t> sizes_up_to(int64_t largest) {
  std::vector<int64_t> sizes;
  std::copy_if(std::begin(kSizes), std::end(kSizes), std::back_inserter(sizes),
               [&](int64_t size) { return size <= largest; });
  return sizes;
}

// Ranks of one host among themselves, every host at the same time.
void measure_within(const comm::Group& group, const DoctorOptions& options, Diagnosis& diagnosis) {
  const comm::Group host = group.split(diagnosis.host_of[group.rank()], group.rank());
  const auto ranks = host.all_gather_value(group.rank());
  std::vector<LinkFigures> links = measure_links(host, options.seconds);
  for (auto& link : links) link = {ranks[link.a], ranks[link.b], link.latency, link.bandwidth};
  group.barrier();
  std::vector<CollectiveFigures> figures;
  if (host.size() > 1) figures = measure_collectives(host, sizes_up_to(options.largest), options.seconds);
  if (host.rank() != 0) links.clear();
  for (const auto& some : gather_lists(group, links))
    diagnosis.within.insert(diagnosis.within.end(), some.begin(), some.end());
  for (const auto& some : gather_lists(group, figures)) {
    diagnosis.all_within.resize(std::max(diagnosis.all_within.size(), some.size()));
    for (size_t i = 0; i < some.size(); ++i) {
      auto& slowest = diagnosis.all_within[i];
      slowest = {some[i].bytes, std::max(slowest.all_to_all, some[i].all_to_all),
                 std::max(slowest.all_reduce, some[i].all_reduce)};
    }
  }
}

// One rank of each host, the others wait.
void measure_between(const comm::Group& group, const DoctorOptions& options, Diagnosis& diagnosis) {
  const int host = diagnosis.host_of[group.rank()];
  const auto first = std::find(diagnosis.host_of.begin(), diagnosis.host_of.end(), host) - diagnosis.host_of.begin();
  const bool speaks = first == group.rank();
  const comm::Group leaders = group.split(speaks ? 0 : 1, host);
  std::vector<LinkFigures> links;
  std::vector<CollectiveFigures> figures;
  if (speaks && leaders.size() > 1) {
    links = measure_links(leaders, options.seconds);
    figures = measure_collectives(leaders, sizes_up_to(options.largest), options.seconds);
  }
  diagnosis.between = gather_lists(group, links)[0];
  diagnosis.all_between = gather_lists(group, figures)[0];
}

}  // namespace

std::string Diagnosis::name_of(int rank) const { return fmt::format("rank {} on {}", rank, hosts[host_of[rank]]); }

Diagnosis diagnose(const comm::Group& group, const std::vector<std::string>& hosts, int cores,
                   const DoctorOptions& options) {
  Diagnosis diagnosis;
  diagnosis.transport = group.transport_name();
  index_hosts(diagnosis, hosts);
  const RankFacts own = own_facts(hosts[group.rank()], cores);
  diagnosis.facts = gather_facts(group, own);
  diagnosis.clocks = measure_clocks(group);
  diagnosis.directory = options.directory;
  diagnosis.files = probe_directory(group, options.directory);
  if (options.compute) diagnosis.gflops = group.all_gather_value(own_gflops(static_cast<int>(own.threads)));
  measure_between(group, options, diagnosis);
  measure_within(group, options, diagnosis);
  return diagnosis;
}

}  // namespace conclave::app
