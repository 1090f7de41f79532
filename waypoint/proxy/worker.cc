#include "waypoint/proxy/worker.h"

#include <sys/random.h>

#include "userspace/codec/http_date.h"
#include "waypoint/proxy/upstream.h"

namespace meltemi::waypoint {
namespace {

const model::MeshStore& empty_mesh() {
  static const model::MeshStore store;
  return store;
}

}  // namespace

ProxyWorker::ProxyWorker(rt::Loop& loop, uint32_t shard, const ProxyShared& shared)
    : loop_(loop),
      shard_(shard),
      shared_(shared),
      mesh_(shared.mesh ? *shared.mesh : empty_mesh()),
      forwarders_(shared.believed),
      tunnels_(loop, shared.hbone, hbone_stats_),
      upstreams_(std::make_unique<UpstreamSet>(*this)) {
  // Without entropy from the kernel the constant seed plus the shard still spreads load.
  if (getrandom(&random_.state, sizeof random_.state, 0) < 0) random_.state += shard;
}

ProxyWorker::~ProxyWorker() = default;

void ProxyWorker::set_snapshot(SnapshotPtr snapshot) {
  snapshot_ = SnapshotRef(new SnapshotHold(std::move(snapshot)));
  upstreams_->update(*snapshot_);
}

void ProxyWorker::drain() {
  draining_ = true;
  upstreams_->close_idle();
}

void ProxyWorker::set_tls(std::shared_ptr<const net::TlsContext> tls) {
  const bool rotated = tls_ != nullptr;
  tls_ = std::move(tls);
  if (tls_) tunnels_.check_roots(tls_);
  if (!rotated) return;
  // Requests under way go on; new ones use the new certificate, so no kept connection of the old tunnels.
  ++certificate_epoch_;
  tunnels_.drain();
  upstreams_->leave_tunnels();
}

Farewell::Farewell(ProxyWorker& worker, net::StreamPtr stream)
    : worker_(worker), stream_(std::move(stream)) {
  stream_->set_events(this);
  stream_->close();
}

void Farewell::on_closed(const net::StreamEnd&) { worker_.farewells_.erase(this); }

void ProxyWorker::farewell(net::StreamPtr stream) {
  if (!stream) return;
  auto farewell = std::make_unique<Farewell>(*this, std::move(stream));
  Farewell* key = farewell.get();
  farewells_.emplace(key, std::move(farewell));
}

std::string_view ProxyWorker::http_date() {
  if (now() >= date_until_) [[unlikely]] {
    const WallTime wall = std::chrono::system_clock::now();
    date_ = codec::http_date(wall);
    const auto into = std::chrono::duration_cast<Duration>(wall.time_since_epoch()) %
                      std::chrono::seconds(1);
    date_until_ = now() + std::chrono::seconds(1) - into;
  }
  return date_;
}

void ProxyWorker::make_request_id(std::array<char, 36>& out) {
  static constexpr auto kHex = [] {  // two digits for each byte
    std::array<char, 512> pairs{};
    for (size_t i = 0; i < 256; ++i) {
      pairs[2 * i] = "0123456789abcdef"[i >> 4];
      pairs[2 * i + 1] = "0123456789abcdef"[i & 15];
    }
    return pairs;
  }();
  uint64_t bits[2] = {random_.next(), random_.next()};
  bits[0] = (bits[0] & ~0xf000ull) | 0x4000;                    // version 4
  bits[1] = (bits[1] & ~(0xc0ull << 56)) | (0x80ull << 56);     // variant 10
  char* to = out.data();
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
    const size_t byte = bits[i / 8] >> (56 - 8 * (i % 8)) & 0xff;
    *to++ = kHex[2 * byte];
    *to++ = kHex[2 * byte + 1];
  }
}

}  // namespace meltemi::waypoint
