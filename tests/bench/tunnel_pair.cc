// The two ends of a tunnel as bare proxies, to measure and tune rt and net without policy, telemetry
// or capture. Not a product; bench.py measures ztunnel itself.
//
//   meltemi-tunnel-pair certs DIR                      writes what the ends need
//   meltemi-tunnel-pair far  DIR LISTEN UPSTREAM [uring|epoll]
//   meltemi-tunnel-pair near DIR LISTEN FAR      [uring|epoll [SPIFFE-ID AUTHORITY]]
//       SPIFFE-ID: whom to expect at FAR; AUTHORITY: what to CONNECT to. Default: our own far end.
//   meltemi-tunnel-pair relay -  LISTEN UPSTREAM [uring|epoll]   plain TCP to TCP
#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "tests/unit/net/certs.h"
#include "tests/unit/net/pair.h"
#include "userspace/rt/memory.h"

namespace meltemi::net::test {
namespace {

constexpr char kClient[] = "spiffe://cluster.local/ns/bench/sa/near";
constexpr char kServer[] = "spiffe://cluster.local/ns/bench/sa/far";

std::string read(const std::string& path) {
  std::ifstream in(path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

void write(const std::string& dir, const char* end, const TlsContext::Material& m) {
  std::ofstream(dir + "/" + end + ".crt") << m.cert_chain_pem;
  std::ofstream(dir + "/" + end + ".key") << m.private_key_pem;
  std::ofstream(dir + "/root.crt") << m.roots_pem;
}

std::shared_ptr<const TlsContext> context(const std::string& dir, const char* end) {
  auto made = TlsContext::create({read(dir + "/" + end + ".crt"), read(dir + "/" + end + ".key"),
                                  read(dir + "/root.crt")});
  if (!made) {
    std::fprintf(stderr, "%s\n", made.error().to_string().c_str());
    std::exit(1);
  }
  return *made;
}

// A plain relay, the floor of what a proxy on this runtime costs.
class PlainRelay {
 public:
  PlainRelay(rt::Loop& loop, const char* listen, SocketAddress upstream)
      : loop_(loop), flows_(loop), upstream_(upstream) {
    flows_.keep_reports = false;
    auto fd = rt::make_tcp_listener(*SocketAddress::parse(listen), {});
    listener_ = std::make_unique<rt::Listener>(loop, std::move(*fd), [this](UniqueFd c) {
      auto dial = std::make_shared<TcpDial>(loop_);
      auto client = std::make_shared<UniqueFd>(std::move(c));
      dial->start({}, upstream_, MonoTime::max(), [this, dial, client](Result<UniqueFd> fd) {
        if (fd) {
          flows_.join(make_tcp_stream(loop_, std::move(*client)),
                      make_tcp_stream(loop_, std::move(*fd)));
        }
        loop_.post([dial] {});  // dies after this call
      });
    });
  }

 private:
  rt::Loop& loop_;
  Flows flows_;
  SocketAddress upstream_;
  std::unique_ptr<rt::Listener> listener_;
};

int run(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "certs" && argc == 3) {
    TestCa ca;
    write(argv[2], "near", ca.issue(kClient));
    write(argv[2], "far", ca.issue(kServer));
    return 0;
  }
  if (argc < 5) {
    std::fprintf(stderr, "usage: see the head of tunnel_pair.cc\n");
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  rt::keep_memory_mapped();
  const std::string backend = argc > 5 ? argv[5] : "uring";
  auto loop = rt::Loop::create(
      {.backend = backend == "epoll" ? rt::Backend::kEpoll : rt::Backend::kUring});
  if (!loop) {
    std::fprintf(stderr, "%s\n", loop.error().to_string().c_str());
    return 1;
  }
  static rt::Loop* running = loop->get();
  signal(SIGTERM, [](int) { running->stop(); });
  const auto to = SocketAddress::parse(argv[4]);
  if (!to) return 2;
  std::unique_ptr<Far> far;
  std::unique_ptr<Near> near;
  std::unique_ptr<PlainRelay> relay;
  if (mode == "far") {
    far = std::make_unique<Far>(**loop, context(argv[2], "far"), *to, HboneOptions{}, argv[3]);
    far->flows.keep_reports = false;
  } else if (mode == "near") {
    const auto expected = model::Identity::parse(argc > 6 ? argv[6] : kServer);
    if (!expected) return 2;
    near = std::make_unique<Near>(**loop, context(argv[2], "near"), *to, std::vector{*expected},
                                  HboneOptions{}, argv[3]);
    if (argc > 7) near->authority = argv[7];
    near->flows.keep_reports = false;
  } else {
    relay = std::make_unique<PlainRelay>(**loop, argv[3], *to);
  }
  std::printf("ready\n");
  std::fflush(stdout);
  (*loop)->run();
  if (getenv("TUNNEL_PAIR_STATS")) {
    const auto& s = (*loop)->stats();
    std::fprintf(stderr, "turns %lu completions %lu no_buffers %lu", s.turns, s.completions, s.no_buffers);
    for (HboneStats* h : {far ? &far->stats : nullptr, near ? &near->stats : nullptr})
      if (h) std::fprintf(stderr, " sends %lu streams %lu", h->sends.load(), h->streams_opened.load());
    std::fprintf(stderr, "\n");
  }
  return 0;
}

}  // namespace
}  // namespace meltemi::net::test

int main(int argc, char** argv) { return meltemi::net::test::run(argc, argv); }
