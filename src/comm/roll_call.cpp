// SPDX-License-Identifier: Apache-2.0
#include "comm/roll_call.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "comm/failure.h"
#include "core/error.h"

namespace conclave::comm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kRepeat = std::chrono::milliseconds(100);  // UDP loses messages

// Where a rank listens: any of its host's IPv4 addresses, in network order.
struct Address {
  uint16_t port = 0;
  int32_t count = 0;
  std::array<uint32_t, 15> hosts{};
};

// Strangers may send to the port as well: what does not carry the job's number is thrown away.
struct Message {
  uint64_t job = 0;
  int32_t rank = -1;  // of who answers; -1 in a question
  int64_t step = 0;
  std::array<char, 48> operation{};
  std::array<char, 48> collective{};
};

class Socket {
 public:
  Socket() : number_(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_in any{};
    any.sin_family = AF_INET;
    if (number_ < 0 || bind(number_, reinterpret_cast<const sockaddr*>(&any), sizeof any) != 0) {
      const int error = errno;
      if (number_ >= 0) close(number_);
      throw CommError("no UDP socket for the watchdog: {}; look at `ulimit -n`", std::strerror(error));
    }
  }
  ~Socket() { close(number_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  int number() const { return number_; }
  uint16_t port() const {
    sockaddr_in own{};
    socklen_t size = sizeof own;
    getsockname(number_, reinterpret_cast<sockaddr*>(&own), &size);
    return own.sin_port;
  }
  // Nothing to do about a failure: who is not reached does not answer.
  void send(const Message& message, const sockaddr_in& to) const {
    [[maybe_unused]] const ssize_t sent =
        sendto(number_, &message, sizeof message, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to);
  }
  // False when nothing of this job is waiting.
  bool receive(Message& message, sockaddr_in& from, uint64_t job) const {
    for (;;) {
      socklen_t size = sizeof from;
      const ssize_t got = recvfrom(number_, &message, sizeof message, 0, reinterpret_cast<sockaddr*>(&from), &size);
      if (got < 0) return false;
      if (got == sizeof message && message.job == job) return true;
    }
  }

 private:
  int number_;
};

Address own_address(uint16_t port) {
  Address address{.port = port};
  address.hosts[address.count++] = htonl(INADDR_LOOPBACK);
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return address;
  for (const ifaddrs* at = first; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET) continue;
    if ((at->ifa_flags & IFF_UP) == 0 || (at->ifa_flags & IFF_LOOPBACK) != 0) continue;
    if (address.count < static_cast<int32_t>(address.hosts.size()))
      address.hosts[address.count++] = reinterpret_cast<const sockaddr_in*>(at->ifa_addr)->sin_addr.s_addr;
  }
  freeifaddrs(first);
  return address;
}

void put(std::array<char, 48>& to, const char* text) {
  if (text != nullptr) std::strncpy(to.data(), text, to.size() - 1);
}

std::string take(std::array<char, 48> text) {
  text.back() = '\0';
  return text.data();
}

}  // namespace

struct RollCall::State {
  uint64_t job = 0;
  int rank = 0;
  std::vector<std::string> hosts;
  std::shared_ptr<const Activity> activity;
  std::vector<Address> addresses;  // by rank
  Socket socket;
  std::array<int, 2> stop{};  // a pipe: closing its end wakes the thread
  std::thread thread;

  void answer_all() const {
    std::array<pollfd, 2> ready{{{socket.number(), POLLIN, 0}, {stop[0], POLLIN, 0}}};
    while (poll(ready.data(), ready.size(), -1) >= 0 || errno == EINTR) {
      if (ready[1].revents != 0) return;
      Message question;
      sockaddr_in from{};
      while (socket.receive(question, from, job)) socket.send(own_answer(), from);
    }
  }
  Message own_answer() const {
    Message answer{.job = job, .rank = rank, .step = activity->step()};
    put(answer.operation, activity->operation());
    put(answer.collective, activity->collective());
    return answer;
  }
  // A loopback address reaches whoever has the port on this host: the answer says who it was.
  void question(const Socket& from, int r) const {
    for (int i = 0; i < addresses[r].count; ++i) {
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_port = addresses[r].port;
      to.sin_addr.s_addr = addresses[r].hosts[i];
      from.send({.job = job}, to);
    }
  }
};

RollCall::RollCall(const Group& group, std::vector<std::string> hosts, std::shared_ptr<const Activity> activity)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.rank = group.rank();
  s.hosts = std::move(hosts);
  s.activity = std::move(activity);
  std::random_device random;
  s.job = group.all_gather_value((uint64_t{random()} << 32) | random())[0];
  s.addresses = group.all_gather_value(own_address(s.socket.port()));
  if (pipe(s.stop.data()) != 0) throw CommError("no pipe for the watchdog: {}", std::strerror(errno));
  s.thread = std::thread([&s] { s.answer_all(); });
}

RollCall::~RollCall() {
  close(state_->stop[1]);
  state_->thread.join();
  close(state_->stop[0]);
}

int RollCall::rank() const { return state_->rank; }
const std::vector<std::string>& RollCall::hosts() const { return state_->hosts; }

std::string describe_absence(const std::vector<RollCall::Answer>& answers, const std::vector<std::string>& hosts) {
  std::vector<int> silent, outside;
  std::map<std::string, std::vector<int>> waiting;
  for (int r = 0; r < static_cast<int>(answers.size()); ++r) {
    const RollCall::Answer& answer = answers[r];
    if (!answer.present)
      silent.push_back(r);
    else if (answer.collective.empty())
      outside.push_back(r);
    else
      waiting[fmt::format("in {} of step {}", answer.collective, answer.step)].push_back(r);
  }
  if (!silent.empty()) {
    const bool alone = silent.size() + 1 == answers.size() && silent.size() > 1;
    return fmt::format("No answer from {}: stopped, dead, or cut off{}", name_ranks(silent, hosts),
                       alone ? " (or UDP between the ranks is blocked)" : "");
  }
  if (!outside.empty()) {
    const RollCall::Answer& first = answers[outside.front()];
    return fmt::format("It is {} that keeps the others waiting, in {} of step {}", name_ranks(outside, hosts),
                       first.operation, first.step);
  }
  std::string text = "All ranks answer:";
  for (const auto& [where, ranks] : waiting)
    text += fmt::format("{} {} {}", text.back() == ':' ? "" : ",", name_ranks(ranks, hosts), where);
  return text + (waiting.size() == 1 ? "; the network between them is cut or very slow" : "");
}

std::vector<RollCall::Answer> RollCall::ask(double seconds) const {
  const State& s = *state_;
  const int size = static_cast<int>(s.addresses.size());
  std::vector<Answer> answers(size);
  const Socket socket;
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  auto next = Clock::now();
  for (int missing = size; missing > 0 && Clock::now() < end;) {
    if (Clock::now() >= next) {
      for (int r = 0; r < size; ++r)
        if (!answers[r].present) s.question(socket, r);
      next = Clock::now() + kRepeat;
    }
    pollfd ready{socket.number(), POLLIN, 0};
    poll(&ready, 1, 10);
    Message message;
    sockaddr_in from{};
    while (socket.receive(message, from, s.job)) {
      if (message.rank < 0 || message.rank >= size || answers[message.rank].present) continue;
      answers[message.rank] = {true, message.step, take(message.operation), take(message.collective)};
      --missing;
    }
  }
  return answers;
}

}  // namespace conclave::comm
