// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_links.h"

#include <gmock/gmock.h>

#include <set>

#include "support/ranks.h"

namespace conclave::app {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<std::string> kHosts{"host h1", "host h2", "host h3", "host h4"};

// 100 MB/s and 20 us everywhere, but `changed` per link.
std::vector<LinkFigures> links_among(int members, const std::function<void(LinkFigures&)>& changed) {
  std::vector<LinkFigures> links;
  for (int a = 0; a < members; ++a)
    for (int b = a + 1; b < members; ++b) {
      links.push_back({a, b, 20e-6, 100e6});
      changed(links.back());
    }
  return links;
}

TEST(DoctorLinks, MeetingsBringEveryTwoTogetherOnce) {
  for (int members = 1; members <= 9; ++members) {
    std::set<std::pair<int, int>> met;
    for (const auto& partner : meetings(members))
      for (int m = 0; m < members; ++m) {
        ASSERT_EQ(partner[partner[m]], m) << members << " members";
        if (m >= partner[m]) continue;
        EXPECT_TRUE(met.emplace(m, partner[m]).second) << m << " meets " << partner[m] << " again";
      }
    EXPECT_EQ(static_cast<int>(met.size()), members * (members - 1) / 2);
  }
}

TEST(DoctorLinks, NamesTheSlowMemberAndNotThoseWhoMeetIt) {
  const auto slow = links_among(4, [](LinkFigures& link) {
    if (link.a == 1 || link.b == 1) link.bandwidth = 20e6;
  });
  EXPECT_THAT(odd_links(slow, kHosts), ElementsAre(HasSubstr("host h2 is slow to all others: at best 20.0 MB/s")));
}

TEST(DoctorLinks, NamesTheSlowLinkBetweenGoodMembers) {
  const auto slow = links_among(4, [](LinkFigures& link) {
    if (link.a == 0 && link.b == 2) link.bandwidth = 20e6;
  });
  EXPECT_THAT(odd_links(slow, kHosts), ElementsAre(HasSubstr("between host h1 and host h3 pass only 20.0 MB/s")));
}

TEST(DoctorLinks, NamesTheLateMember) {
  const auto late = links_among(4, [](LinkFigures& link) {
    if (link.b == 3) link.latency = 1e-3;
  });
  EXPECT_THAT(odd_links(late, kHosts), ElementsAre(HasSubstr("host h4 is late to all others: at best 1000 us")));
}

TEST(DoctorLinks, SaysNothingAboutEqualsOrWithoutComparison) {
  EXPECT_THAT(odd_links(links_among(4, [](LinkFigures& link) { link.bandwidth *= 1 + 0.3 * link.a; }), kHosts),
              IsEmpty());
  EXPECT_THAT(odd_links(links_among(2, [](LinkFigures&) {}), {"a", "b"}), IsEmpty());
  EXPECT_THAT(odd_links({}, {"a"}), IsEmpty());
}

TEST(DoctorLinksRanks, EveryRankKnowsEveryLink) {
  test::run_ranks(3, [](const comm::Group& group) {
    const auto links = measure_links(group, 0.01);
    ASSERT_EQ(links.size(), 3u);
    for (const auto& link : links) {
      EXPECT_LT(link.a, link.b);
      EXPECT_GT(link.bandwidth, 1e6);
      EXPECT_GT(link.latency, 0);
    }
    for (const auto& sum : group.all_gather_value(links[2].bandwidth)) EXPECT_EQ(sum, links[2].bandwidth);
  });
}

}  // namespace
}  // namespace conclave::app
