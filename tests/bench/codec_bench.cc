// What the codecs cost on their own: per record sealed and opened, per DATA frame, per CONNECT, per
// request, per handshake. It must never touch a socket.
//
//   meltemi-codec-bench [--json]        nanoseconds, the best of several rounds; pin it to one core
//   valgrind --tool=callgrind --collect-atstart=no meltemi-codec-bench --instructions
//       counts instructions instead, the same on every run and under any load: one dump a row,
//       named "ROW|CALLS". Valgrind has no AVX-512, so records are those of the AVX2 kernels, and
//       it does not read clang's debug information: strip -g first.
#include <fmt/format.h>
#include <valgrind/callgrind.h>

#include <chrono>
#include <cstring>
#include <list>
#include <string>
#include <vector>

#include "tests/unit/net/certs.h"
#include "userspace/codec/h1.h"
#include "userspace/codec/h2.h"
#include "userspace/codec/h2_tunnel.h"
#include "userspace/codec/tls_record.h"
#include "userspace/net/tls_handshake.h"

namespace {

using namespace meltemi;
using namespace meltemi::codec;

struct Row {
  std::string name;
  double ns;
  double gb_per_s;  // 0: has none
};

// Calls that a row's instructions are counted over.
constexpr int kCountedCalls = 64;

// Measures one row after the other, by the clock or by callgrind.
class Meter {
 public:
  explicit Meter(bool instructions) : instructions_(instructions) {}
  const std::vector<Row>& rows() const { return rows_; }
  bool counts_instructions() const { return instructions_; }

  // `bytes`: that one call works on; 0: the row has no throughput.
  template <typename Work>
  void add(const std::string& name, size_t bytes, Work&& work, int counted = kCountedCalls) {
    instructions_ ? count(name, counted, work) : record(name, bytes, time(work));
  }

  // For work that uses up what it is given: `prepare` makes enough for `batch` calls, unmeasured.
  template <typename Prepare, typename Work>
  void add(const std::string& name, size_t bytes, size_t batch, Prepare&& prepare, Work&& work) {
    prepare();
    size_t left = batch;
    if (instructions_) {
      count(name, kCountedCalls, [&] {
        if (left == 0) {
          CALLGRIND_TOGGLE_COLLECT;
          prepare();
          left = batch;
          CALLGRIND_TOGGLE_COLLECT;
        }
        work(batch - left--);
      });
      return;
    }
    double best = 1e18;
    for (int round = 0; round < 200; ++round) {
      prepare();
      const auto start = Clock::now();
      for (size_t i = 0; i < batch; ++i) work(i);
      best = std::min(best, since(start) / static_cast<double>(batch));
    }
    record(name, bytes, best);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double since(Clock::time_point start) {
    return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
  }
  // Nanoseconds per call: the best of many short batches, so that a busy machine does not count.
  template <typename Work>
  static double time(Work&& work) {
    auto run = [&](uint64_t n) {
      const auto start = Clock::now();
      for (uint64_t i = 0; i < n; ++i) work();
      return since(start);
    };
    uint64_t n = 1;
    while (run(n) < 4e4 && n < 1 << 20) n *= 2;
    double best = 1e18;
    for (int i = 0; i < 2000 && best * static_cast<double>(n) * i < 3e8; ++i)
      best = std::min(best, run(n) / static_cast<double>(n));
    return best;
  }
  template <typename Work>
  void count(const std::string& name, int calls, Work&& work) {
    for (int i = 0; i < 4; ++i) work();  // first calls resolve symbols and fetch algorithms
    CALLGRIND_ZERO_STATS;
    CALLGRIND_TOGGLE_COLLECT;
    for (int i = 0; i < calls; ++i) work();
    CALLGRIND_TOGGLE_COLLECT;
    // Valgrind reads the text some time later.
    labels_.push_back(fmt::format("{}|{}", name, calls));
    CALLGRIND_DUMP_STATS_AT(labels_.back().c_str());
  }
  void record(const std::string& name, size_t bytes, double ns) {
    rows_.push_back({name, ns, static_cast<double>(bytes) / ns});
  }

  bool instructions_;
  std::vector<Row> rows_;
  std::list<std::string> labels_;
};

RecordLayer make(TlsRole role, AeadBackend backend, TlsCipher cipher) {
  uint8_t a[48], b[48];
  std::memset(a, 1, sizeof a);
  std::memset(b, 2, sizeof b);
  const size_t n = cipher == TlsCipher::kAes256Gcm ? 48 : 32;
  return std::move(*RecordLayer::create(role, cipher, {a, n}, {b, n}, {backend, ~uint64_t{0}}));
}

void open_all(RecordLayer& layer, ByteSpan wire) {
  while (!wire.empty()) {
    const size_t extent = *record_extent(wire);
    if (!layer.open(wire.first(extent))) std::abort();
    wire = wire.subspan(extent);
  }
}

void bench_records(Meter& meter, AeadBackend backend, TlsCipher cipher, const std::string& label,
                   std::initializer_list<size_t> sizes) {
  for (const size_t size : sizes) {
    RecordLayer client = make(TlsRole::kClient, backend, cipher);
    std::vector<uint8_t> data(size, 'x'), out(client.sealed_size(size));
    // The shape of a flush: a frame header, then the payload.
    const ByteView head(data.data(), 9), rest(data.data() + 9, size - 9);
    meter.add(fmt::format("{} seal {}", label, size), size, [&] {
      client.begin(out, size);
      client.append(head);
      client.append(rest);
      client.finish();
    });

    // Opening needs fresh ciphertext each time.
    RecordLayer peer = make(TlsRole::kClient, backend, cipher);
    RecordLayer server = make(TlsRole::kServer, backend, cipher);
    const size_t batch = size > 10000 ? 8 : 512;
    std::vector<std::vector<uint8_t>> wire(batch);
    meter.add(
        fmt::format("{} open {}", label, size), size, batch,
        [&] {
          for (auto& w : wire) {
            w.resize(peer.sealed_size(size));
            const ByteView whole(data);
            peer.seal(w, {&whole, 1});
          }
        },
        [&](size_t i) { open_all(server, wire[i]); });
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

void bench_tunnel(Meter& meter) {
  for (uint32_t size : {64u, 16375u}) {
    Pair pair;
    const uint32_t id = *pair.client.connect("10.0.0.2:80", {}, nullptr);
    pair.exchange();
    std::vector<uint8_t> frame(9 + size);
    meter.add("tunnel DATA write+read+windows " + std::to_string(size), 0, [&] {
      if (pair.client.sendable(id) < size) pair.exchange();
      pair.client.write_data_header(id, size, false, std::span<uint8_t, 9>(frame.data(), 9));
      Pair::feed(pair.server, frame, pair.now);
      if (!pair.server.pending().empty()) pair.exchange();
    });
  }
  Pair pair;
  const HeaderField headers[] = {
      {"baggage",
       "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,"
       "service.name=web,service.version=v1"},
      {"forwarded", "for=\"10.0.0.1:4711\";host=web.shop.svc.cluster.local"},
      {"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}};
  uint8_t fin[9];
  meter.add("tunnel CONNECT, 200, end both ways", 0, [&] {
    const auto id = pair.client.connect("10.0.0.2:80", headers, nullptr);
    if (!id) std::abort();
    pair.exchange();
    pair.client.write_data_header(*id, 0, true, fin);
    Pair::feed(pair.server, fin, pair.now);
    pair.server.write_data_header(*id, 0, true, fin);
    Pair::feed(pair.client, fin, pair.now);
    if (pair.client.stream_count() != 0) std::abort();
  });
}

// 64 bytes there and 64 bytes back through a warm tunnel, records and frames of both ends: what a
// small request costs besides its system calls.
void bench_small_request(Meter& meter) {
  constexpr uint32_t kBytes = 64;
  Pair pair;
  const uint32_t id = *pair.client.connect("10.0.0.2:80", {}, nullptr);
  pair.exchange();
  RecordLayer client = make(TlsRole::kClient, AeadBackend::kAuto, TlsCipher::kAes128Gcm);
  RecordLayer server = make(TlsRole::kServer, AeadBackend::kAuto, TlsCipher::kAes128Gcm);
  uint8_t payload[kBytes] = {}, wire[256];
  auto carry = [&](TunnelSession& from, RecordLayer& seals, TunnelSession& to, RecordLayer& opens) {
    uint8_t header[9];
    if (!from.write_data_header(id, kBytes, false, header)) std::abort();
    const ByteView pieces[] = {header, payload};
    const size_t size = seals.seal(wire, pieces);
    auto record = opens.open({wire, size});
    if (!record) std::abort();
    Pair::feed(to, record->data, pair.now);
  };
  meter.add("tunnel 64 B there and back, both ends", 0, [&] {
    if (pair.client.sendable(id) < kBytes || pair.server.sendable(id) < kBytes) pair.exchange();
    carry(pair.client, client, pair.server, server);
    carry(pair.server, server, pair.client, client);
  });
}

void bench_handshake(Meter& meter) {
  net::test::TestCa ca;
  const auto near = ca.context("spiffe://cluster.local/ns/bench/sa/near");
  const auto far = ca.context("spiffe://cluster.local/ns/bench/sa/far");
  const std::vector pinned{net::test::id("spiffe://cluster.local/ns/bench/sa/far")};
  meter.add(
      "mutual TLS handshake, both ends", 0,
      [&] {
        net::TlsHandshake client(TlsRole::kClient, near, pinned), server(TlsRole::kServer, far, {});
        std::string to_server, to_client;
        ByteSpan nothing;
        bool client_done = *client.feed(nothing, to_server), server_done = false;
        auto deliver = [](net::TlsHandshake& end, std::string& bytes, std::string& out) {
          ByteSpan in(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size());
          const auto done = end.feed(in, out);
          if (!done) std::abort();
          bytes.clear();
          return *done;
        };
        while (!client_done || !server_done) {
          if (!server_done) server_done = deliver(server, to_server, to_client);
          if (!client_done) client_done = deliver(client, to_client, to_server);
        }
        if (!client.take() || !server.take()) std::abort();
      },
      8);  // enough to even out what depends on its random numbers
}

void bench_h1(Meter& meter) {
  const std::string wire =
      "GET /api/v1/items?limit=20 HTTP/1.1\r\nHost: catalog.shop.svc.cluster.local\r\n"
      "User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Request-Id: "
      "6e1f0b5c-8a51-4d0c-9c0e-2f6c3d5b7a11\r\n"
      "Accept-Encoding: gzip, br\r\n\r\n";
  H1Parser parser(H1Role::kRequests);
  meter.add("h1 parse a request of 5 headers", 0, [&] {
    ByteView in = as_bytes(wire);
    if (parser.next(in).kind != H1EventKind::kHead) std::abort();
    if (parser.next(in).kind != H1EventKind::kComplete) std::abort();
  });
  ByteView in = as_bytes(wire);
  H1Parser other(H1Role::kRequests);
  other.next(in);
  std::string out;
  meter.add("h1 write a request of 5 headers", 0, [&] {
    out.clear();
    const H1Head& h = other.head();
    if (!append_request_head(out, h.method, h.target, h.headers)) std::abort();
  });
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

void bench_h2(Meter& meter) {
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
  meter.add("h2 request and response, both ends", 0, [&] {
    if (!client.session.request(request, nullptr)) std::abort();
    exchange();
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc > 1 ? argv[1] : "";
  const bool json = mode == "--json";
  Meter meter(mode == "--instructions");
  const auto all = {size_t{64}, size_t{1024}, size_t{16384}, size_t{262144}};
  const auto few = {size_t{64}, size_t{16384}};
  using enum TlsCipher;
  bench_records(meter, AeadBackend::kAuto, kAes128Gcm, "aes128",
                meter.counts_instructions() ? few : all);
  if (!meter.counts_instructions()) {
    bench_records(meter, AeadBackend::kAuto, kAes256Gcm, "aes256", all);
    bench_records(meter, AeadBackend::kAuto, kChaCha20Poly1305, "chacha20", all);
    for (const AeadBackend backend : aead_backends())
      bench_records(meter, backend, kAes128Gcm,
                    fmt::format("aes128 {}", aead_backend_name(backend)), few);
  }
  bench_tunnel(meter);
  bench_small_request(meter);
  bench_handshake(meter);
  bench_h1(meter);
  bench_h2(meter);
  if (meter.counts_instructions()) return 0;
  if (!json) fmt::print("AEAD: {}\n", aead_backend_name());
  std::string out = "{";
  for (const Row& r : meter.rows()) {
    if (json)
      out += fmt::format("{}\"{}\":{:.1f}", out.size() > 1 ? "," : "", r.name, r.ns);
    else
      fmt::print("{:<44} {:>10.1f} ns {}\n", r.name, r.ns,
                 r.gb_per_s > 0 ? fmt::format("{:6.2f} GB/s", r.gb_per_s) : "");
  }
  if (json) fmt::print("{}}}\n", out);
  return 0;
}
