// What capture costs a connection: connect, accept, learn the original destination, close, in one
// namespace and one thread. "direct" is a plain namespace and a process that no BPF hook watches;
// "captured" is an enrolled pod that calls an address far away and is brought to its outbound listener.
// The two alternate in blocks; the result is the median of both as one line of JSON.
//
// With --guard, what the guard costs a connection that it lets live: requests and answers of 64 bytes over
// one connection of ztunnel's kind, out of a pod whose namespace has the guard and out of one that has not.
//
//   meltemi-capture-bench [--guard] [--seconds S]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "tests/netns/capture/lab.h"

namespace meltemi::test {
namespace {

const Require require(Need::kRootAndCgroup2);
constexpr int kBlock = 500;

// One connection to `to`, accepted on `listener`. Nanoseconds.
int64_t one(int listener, const SocketAddress& to) {
  const MonoTime begin = MonoClock::now();
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (connect_to(client.get(), to) != 0) {
    std::fprintf(stderr, "capture-bench: connect to %s: %s\n", to.to_string().c_str(),
                 std::strerror(errno));
    std::exit(1);
  }
  UniqueFd server(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (local_of(server.get()) != to) {
    std::fprintf(stderr, "capture-bench: the original destination was lost\n");
    std::exit(1);
  }
  client.reset();
  server.reset();
  return (MonoClock::now() - begin).count();
}

struct Side {
  const LabPod* pod;
  int listener;
  SocketAddress to;
  std::vector<int64_t> samples;

  void block() {
    const auto run = [&]() -> Status {
      for (int i = 0; i < kBlock; ++i) samples.push_back(one(listener, to));
      return {};
    };
    must(pod->netns.run(run));
  }
  double median_us() {
    std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
    return static_cast<double>(samples[samples.size() / 2]) / 1e3;
  }
};

// One side of the guard's row: a client in an enrolled pod, a peer in a plain one, one connection.
struct Conversation {
  UniqueFd client, server;
  std::vector<int64_t> samples;

  Conversation(const LabPod& from, const LabPod& to, uint16_t port) {
    const UniqueFd listener = tcp_server(to.netns, port);
    client = tcp_socket(from.netns, AF_INET);
    const uint32_t mark = MELTEMI_TUNNEL_MARK;
    ::setsockopt(client.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark);
    if (connect_to(client.get(), {to.v4, port}) != 0) {
      std::fprintf(stderr, "capture-bench: the tunnel's dial failed\n");
      std::exit(1);
    }
    server = accept_one(listener.get());
  }
  void block() {
    char bytes[64] = {};
    const auto pass = [&](int from, int to) {
      if (::send(from, bytes, sizeof bytes, 0) != sizeof bytes ||
          ::recv(to, bytes, sizeof bytes, MSG_WAITALL) != sizeof bytes)
        std::exit(1);
    };
    for (int i = 0; i < kBlock; ++i) {
      const MonoTime begin = MonoClock::now();
      pass(client.get(), server.get());
      pass(server.get(), client.get());
      samples.push_back((MonoClock::now() - begin).count());
    }
  }
  double median_us() {
    std::nth_element(samples.begin(), samples.begin() + samples.size() / 2, samples.end());
    return static_cast<double>(samples[samples.size() / 2]) / 1e3;
  }
};

int run_guard(double seconds) {
  Lab lab;
  auto bpf = must(agent::BpfStore::load({.directory = lab.bpf_directory(),
                                         .probe_v4 = ip(MELTEMI_PROBE_ADDRESS_V4),
                                         .probe_v6 = ip(MELTEMI_PROBE_ADDRESS_V6),
                                         .node_netns_cookie = must(lab.node.cookie()),
                                         .node_netns = must(lab.node.duplicate())}));
  must(bpf->attach(lab.cgroup));
  must(bpf->set_cgroup_roles(must(must(sys::Cgroup::of_process(0)).id()), MELTEMI_CGROUP_TUNNEL));
  agent::Capture capture(*bpf, {MELTEMI_CAPTURE_MARK, MELTEMI_TUNNEL_MARK}, must(lab.node.cookie()));
  const LabPod& peer = lab.add_pod(1);
  std::vector<agent::CapturedPod> captured;
  std::vector<Conversation> sides;
  for (const bool guard : {true, false}) {
    const LabPod& pod = lab.add_pod(guard ? 2 : 3);
    captured.push_back(must(capture.open(pod.path, pod.addresses())));
    must(capture.enrol(captured.back(), {.addresses = pod.addresses(), .guard = guard}));
    sides.emplace_back(pod, peer, static_cast<uint16_t>(guard ? 7000 : 7001));
  }
  const MonoTime end = MonoClock::now() + Duration(static_cast<int64_t>(seconds * 1e9));
  while (MonoClock::now() < end)
    for (Conversation& side : sides) side.block();
  std::printf("{\"guarded\": {\"p50_us\": %.3f}, \"unguarded\": {\"p50_us\": %.3f}}\n",
              sides[0].median_us(), sides[1].median_us());
  return 0;
}

int run(double seconds) {
  const sys::Cgroup outside = must(sys::Cgroup::of_process(0));
  Lab lab;
  const sys::Cgroup inside = must(sys::Cgroup::of_process(0));
  const agent::ProbeAddresses probes{ip(MELTEMI_PROBE_ADDRESS_V4), ip(MELTEMI_PROBE_ADDRESS_V6)};
  auto bpf = must(agent::BpfStore::load({.directory = lab.bpf_directory(),
                                         .probe_v4 = probes.v4,
                                         .probe_v6 = probes.v6,
                                         .node_netns_cookie = must(lab.node.cookie()),
                                         .node_netns = must(lab.node.duplicate())}));
  must(bpf->attach(lab.cgroup));
  agent::Capture capture(*bpf, {MELTEMI_CAPTURE_MARK, MELTEMI_TUNNEL_MARK}, must(lab.node.cookie()));
  const LabPod& plain = lab.add_pod(1);
  const LabPod& enrolled = lab.add_pod(2);
  agent::CapturedPod captured = must(capture.open(enrolled.path, enrolled.addresses()));
  must(capture.enrol(captured, {.addresses = enrolled.addresses()}));
  const UniqueFd listener = tcp_server(plain.netns, 7000);

  Side direct{&plain, listener.get(), {plain.v4, 7000}, {}};
  Side steered{&enrolled, captured.listeners.outbound.get(), at("10.96.0.10", 80), {}};
  // The outbound listener belongs to the agent and is non-blocking; here it is accepted from at once.
  ::fcntl(steered.listener, F_SETFL, ::fcntl(steered.listener, F_GETFL) & ~O_NONBLOCK);
  const MonoTime end = MonoClock::now() + Duration(static_cast<int64_t>(seconds * 1e9));
  while (MonoClock::now() < end) {
    must(outside.add_process(0));
    direct.block();
    must(inside.add_process(0));
    steered.block();
  }
  std::printf("{\"direct\": {\"p50_us\": %.2f}, \"captured\": {\"p50_us\": %.2f}}\n",
              direct.median_us(), steered.median_us());
  return 0;
}

}  // namespace
}  // namespace meltemi::test

int main(int argc, char** argv) {
  double seconds = 2;
  bool guard = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--guard") guard = true;
    if (std::string(argv[i]) == "--seconds" && i + 1 < argc) seconds = std::atof(argv[++i]);
  }
  return guard ? meltemi::test::run_guard(seconds) : meltemi::test::run(seconds);
}
