// What the codecs of the tunnel cost on their own: nanoseconds per record sealed and opened, per
// DATA frame written and read, per CONNECT. Run pinned to one core; prints the best of several
// rounds, as text or with --json as one JSON object. It must never touch a socket.
#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "userspace/codec/h1.h"
#include "userspace/codec/h2.h"
#include "userspace/codec/h2_tunnel.h"
#include "userspace/codec/tls_record.h"

namespace {

using namespace meltemi;
using namespace meltemi::codec;

struct Row {
  std::string name;
  double ns;
  double gb_per_s;  // 0: has none
};

// Nanoseconds per call of `work`: the best of many short batches, so that a busy machine does not
// count.
double measure(const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  auto run = [&](uint64_t n) {
    const auto start = Clock::now();
    for (uint64_t i = 0; i < n; ++i) work();
    return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
  };
  uint64_t n = 1;
  while (run(n) < 4e4 && n < 1 << 20) n *= 2;
  double best = 1e18;
  for (int i = 0; i < 2000; ++i) best = std::min(best, run(n) / static_cast<double>(n));
  return best;
}

RecordLayer make(TlsRole role, AeadBackend backend, TlsCipher cipher) {
  uint8_t a[48], b[48];
  std::memset(a, 1, sizeof a);
  std::memset(b, 2, sizeof b);
  const size_t n = cipher == TlsCipher::kAes256Gcm ? 48 : 32;
  return std::move(*RecordLayer::create(role, cipher, {a, n}, {b, n}, {backend, ~uint64_t{0}}));
}

void bench_records(std::vector<Row>& rows, AeadBackend backend, TlsCipher cipher,
                   const std::string& label) {
  for (size_t size : {64u, 1024u, 16384u, 262144u}) {
    RecordLayer client = make(TlsRole::kClient, backend, cipher);
    std::vector<uint8_t> data(size, 'x'), out(client.sealed_size(size));
    // The shape of a flush: a frame header, then the payload.
    const ByteView head(data.data(), 9), rest(data.data() + 9, size - 9);
    const double seal = measure([&] {
      client.begin(out, size);
      client.append(head);
      client.append(rest);
      client.finish();
    });
    rows.push_back(
        {label + " seal " + std::to_string(size), seal, static_cast<double>(size) / seal});

    // Opening needs fresh ciphertext each time: seal a batch, then time only the opening of it.
    RecordLayer peer = make(TlsRole::kClient, backend, cipher);
    RecordLayer server = make(TlsRole::kServer, backend, cipher);
    const size_t batch = size > 10000 ? 8 : 512;
    std::vector<std::vector<uint8_t>> wire(batch);
    double best = 1e18;
    for (int round = 0; round < 200; ++round) {
      for (auto& w : wire) {
        w.resize(peer.sealed_size(size));
        const ByteView whole(data);
        peer.seal(w, {&whole, 1});
      }
      const auto start = std::chrono::steady_clock::now();
      for (auto& w : wire) {
        ByteSpan left(w);
        while (!left.empty()) {
          const size_t extent = *record_extent(left);
          if (!server.open(left.first(extent))) std::abort();
          left = left.subspan(extent);
        }
      }
      const std::chrono::duration<double, std::nano> took =
          std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / static_cast<double>(batch));
    }
    rows.push_back(
        {label + " open " + std::to_string(size), best, static_cast<double>(size) / best});
  }
}

// Two sessions that have met, and one open stream.
struct Pair {
  MonoTime now{std::chrono::hours(1)};
  TunnelSession client{TunnelRole::kClient, {}, now};
  TunnelSession server{TunnelRole::kServer, {}, now};

  Pair() { exchange(); }
  static void feed(TunnelSession& to, ByteView bytes, MonoTime now) {
    for (;;) {
      const TunnelEvent e = to.next(bytes, now);
      if (e.kind == TunnelEventKind::kNone) return;
      if (e.kind == TunnelEventKind::kRequest) to.respond(e.stream, 200, {}, false);
      if (e.kind == TunnelEventKind::kData)
        to.consume(e.stream, static_cast<uint32_t>(e.data.size()));
    }
  }
  void exchange() {
    while (!client.pending().empty() || !server.pending().empty()) {
      const std::string a(as_text(client.pending())), b(as_text(server.pending()));
      client.clear_pending();
      server.clear_pending();
      feed(server, as_bytes(a), now);
      feed(client, as_bytes(b), now);
    }
  }
};

void bench_tunnel(std::vector<Row>& rows) {
  for (uint32_t size : {64u, 16375u}) {
    Pair pair;
    const uint32_t id = *pair.client.connect("10.0.0.2:80", {}, nullptr);
    pair.exchange();
    std::vector<uint8_t> frame(9 + size);
    const double both = measure([&] {
      if (pair.client.sendable(id) < size) pair.exchange();
      pair.client.write_data_header(id, size, false, std::span<uint8_t, 9>(frame.data(), 9));
      Pair::feed(pair.server, frame, pair.now);
      if (!pair.server.pending().empty()) pair.exchange();
    });
    rows.push_back({"tunnel DATA write+read+windows " + std::to_string(size), both, 0});
  }
  Pair pair;
  const HeaderField headers[] = {
      {"baggage",
       "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,"
       "service.name=web,service.version=v1"},
      {"forwarded", "for=\"10.0.0.1:4711\";host=web.shop.svc.cluster.local"},
      {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}};
  uint8_t fin[9];
  rows.push_back({"tunnel CONNECT, 200, end both ways", measure([&] {
                    const auto id = pair.client.connect("10.0.0.2:80", headers, nullptr);
                    if (!id) std::abort();
                    pair.exchange();
                    pair.client.write_data_header(*id, 0, true, fin);
                    Pair::feed(pair.server, fin, pair.now);
                    pair.server.write_data_header(*id, 0, true, fin);
                    Pair::feed(pair.client, fin, pair.now);
                    if (pair.client.stream_count() != 0) std::abort();
                  }),
                  0});
}

void bench_h1(std::vector<Row>& rows) {
  const std::string wire =
      "GET /api/v1/items?limit=20 HTTP/1.1\r\nHost: catalog.shop.svc.cluster.local\r\n"
      "User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Request-Id: "
      "6e1f0b5c-8a51-4d0c-9c0e-2f6c3d5b7a11\r\n"
      "Accept-Encoding: gzip, br\r\n\r\n";
  H1Parser parser(H1Role::kRequests);
  rows.push_back({"h1 parse a request of 5 headers", measure([&] {
                    ByteView in = as_bytes(wire);
                    if (parser.next(in).kind != H1EventKind::kHead) std::abort();
                    if (parser.next(in).kind != H1EventKind::kComplete) std::abort();
                  }),
                  0});
  ByteView in = as_bytes(wire);
  H1Parser other(H1Role::kRequests);
  other.next(in);
  std::string out;
  rows.push_back({"h1 write a request of 5 headers", measure([&] {
                    out.clear();
                    const H1Head& h = other.head();
                    if (!append_request_head(out, h.method, h.target, h.headers)) std::abort();
                  }),
                  0});
}

// One side of an HTTP/2 exchange; the bytes it wants to send gather in `out`.
struct H2End : H2Handler, H2Sink {
  std::string out;
  H2Session session;
  HeaderList answer;
  explicit H2End(H2Role role) : session(role, *this) {
    for (auto [n, v] : std::initializer_list<std::pair<const char*, const char*>>{
             {":status", "200"},
             {"content-type", "application/json"},
             {"server", "meltemi"},
             {"x-request-id", "6e1f0b5c-8a51-4d0c-9c0e-2f6c3d5b7a11"}})
      answer.add(n, v);
  }
  void append(ByteView piece) override { out += as_text(piece); }
  void on_head(uint32_t id, HeaderList& h, bool) override {
    if (h[0].name == ":method") (void)session.respond(id, answer, nullptr);
  }
  void on_data(uint32_t, ByteView) override {}
  void on_end(uint32_t, const HeaderList&) override {}
  void on_closed(uint32_t, uint32_t, bool) override {}
};

void bench_h2(std::vector<Row>& rows) {
  H2End client(H2Role::kClient), server(H2Role::kServer);
  const MonoTime now{std::chrono::hours(1)};
  auto exchange = [&] {
    for (;;) {
      client.session.flush(client, 1 << 20);
      server.session.flush(server, 1 << 20);
      if (client.out.empty() && server.out.empty()) return;
      if (!server.session.receive(as_bytes(client.out), now)) std::abort();
      if (!client.session.receive(as_bytes(server.out), now)) std::abort();
      client.out.clear();
      server.out.clear();
    }
  };
  exchange();
  HeaderList request;
  for (auto [n, v] : std::initializer_list<std::pair<const char*, const char*>>{
           {":method", "GET"},
           {":scheme", "http"},
           {":authority", "catalog.shop.svc.cluster.local"},
           {":path", "/api/v1/items?limit=20"},
           {"user-agent", "h2load nghttp2/1.52.0"},
           {"accept", "*/*"},
           {"x-request-id", "6e1f0b5c-8a51-4d0c-9c0e-2f6c3d5b7a11"}})
    request.add(n, v);
  rows.push_back({"h2 request and response, both ends", measure([&] {
                    if (!client.session.request(request, nullptr)) std::abort();
                    exchange();
                  }),
                  0});
}

}  // namespace

int main(int argc, char** argv) {
  const bool json = argc > 1 && std::string_view(argv[1]) == "--json";
  std::vector<Row> rows;
  bench_records(rows, AeadBackend::kAuto, TlsCipher::kAes128Gcm, "aes128");
  bench_records(rows, AeadBackend::kAuto, TlsCipher::kAes256Gcm, "aes256");
  bench_records(rows, AeadBackend::kAuto, TlsCipher::kChaCha20Poly1305, "chacha20");
  bench_records(rows, AeadBackend::kOpenssl, TlsCipher::kAes128Gcm, "aes128 openssl");
  bench_tunnel(rows);
  bench_h1(rows);
  bench_h2(rows);
  if (!json) fmt::print("AEAD: {}\n", aead_backend_name());
  std::string out = "{";
  for (const Row& r : rows) {
    if (json)
      out += fmt::format("{}\"{}\":{:.1f}", out.size() > 1 ? "," : "", r.name, r.ns);
    else
      fmt::print("{:<38} {:>10.1f} ns {}\n", r.name, r.ns,
                 r.gb_per_s > 0 ? fmt::format("{:6.2f} GB/s", r.gb_per_s) : "");
  }
  if (json) fmt::print("{}}}\n", out);
  return 0;
}
