#include "userspace/codec/key_packet.h"

#include "meltemi/local/v1/keys.pb.h"
#include "userspace/codec/percent.h"

namespace meltemi::codec::keys {
namespace {

namespace pb = meltemi::local::v1;

constexpr uint32_t kVersion = 1;
constexpr int64_t kMaxSeconds = int64_t{1} << 33;  // the year 2242; WallTime ends in 2262

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadRequest, Fault::kDownstream, "kept keys: " + std::move(detail));
}

Status check_identity(std::string_view identity) {
  if (!identity.starts_with("spiffe://")) return bad("the identity is no SPIFFE ID");
  if (identity.size() > kMaxIdentity) return bad("the identity is longer than 2048 bytes");
  if (has_control(identity)) return bad("the identity has control characters");
  return {};
}

}  // namespace

std::string encode(const Packet& packet) {
  pb::KeyPacket m;
  if (std::holds_alternative<Hello>(packet)) {
    m.mutable_hello()->set_version(kVersion);
  } else if (const auto* kept = std::get_if<Kept>(&packet)) {
    m.mutable_kept()->set_identity(kept->identity);
    const auto since = kept->not_after.time_since_epoch();
    m.mutable_kept()->set_not_after(std::chrono::floor<std::chrono::seconds>(since).count());
  } else if (const auto* forgotten = std::get_if<Forgotten>(&packet)) {
    m.mutable_forgotten()->set_identity(forgotten->identity);
  } else {
    m.mutable_complete();
  }
  return m.SerializeAsString();
}

Result<Packet> decode(ByteView packet, size_t fds) {
  pb::KeyPacket m;
  if (packet.size() > kMaxPacket) return bad("packet above 4096 bytes");
  if (!m.ParseFromArray(packet.data(), static_cast<int>(packet.size()))) return bad("malformed");
  if (fds != (m.has_kept() ? 1u : 0u)) return bad("a number of descriptors that does not fit");
  switch (m.kind_case()) {
    case pb::KeyPacket::kHello:
      if (m.hello().version() != kVersion) return bad("hello of an unknown version");
      return Hello{};
    case pb::KeyPacket::kKept: {
      MELTEMI_TRY(check_identity(m.kept().identity()));
      const int64_t seconds = m.kept().not_after();
      if (seconds < 0 || seconds > kMaxSeconds) return bad("a time that cannot be");
      return Kept{m.kept().identity(), WallTime(std::chrono::seconds(seconds))};
    }
    case pb::KeyPacket::kForgotten:
      MELTEMI_TRY(check_identity(m.forgotten().identity()));
      return Forgotten{m.forgotten().identity()};
    case pb::KeyPacket::kComplete:
      return Complete{};
    default:
      return bad("packet without a known kind");
  }
}

}  // namespace meltemi::codec::keys
