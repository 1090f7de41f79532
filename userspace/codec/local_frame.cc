#include "userspace/codec/local_frame.h"

#include <algorithm>

#include "userspace/codec/percent.h"

namespace meltemi::codec::local {
namespace {

namespace pb = meltemi::local::v1;

constexpr char kLast = 0;
constexpr char kMore = 1;
constexpr size_t kMaxNameBytes = 253;
constexpr size_t kMaxPathBytes = 4096;
constexpr int kMaxAddresses = 16;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadRequest, Fault::kDownstream, "agent socket: " + std::move(detail));
}

Result<std::vector<std::string>> cut(const std::string& message) {
  if (message.size() > kMaxMessage)
    return fail(Reason::kLimitExceeded, Fault::kInternal, "agent socket: message above 4 MiB");
  std::vector<std::string> packets;
  size_t at = 0;
  do {
    const size_t n = std::min(message.size() - at, kMaxPacket - 1);
    std::string packet(1, at + n == message.size() ? kLast : kMore);
    packet.append(message, at, n);
    packets.push_back(std::move(packet));
    at += n;
  } while (at < message.size());
  return packets;
}

Status check(std::string_view what, std::string_view value, size_t most) {
  if (value.size() > most)
    return bad(std::string(what) + " is longer than " + std::to_string(most) + " bytes");
  if (has_control(value)) return bad(std::string(what) + " has control characters");
  return {};
}

template <typename Call>
Status check_pod(const Call& call) {
  MELTEMI_TRY(check("name", call.name(), kMaxNameBytes));
  MELTEMI_TRY(check("namespace", call.namespace_(), kMaxNameBytes));
  return check("uid", call.uid(), kMaxNameBytes);
}

}  // namespace

Result<std::vector<std::string>> encode(const pb::Request& request) {
  return cut(request.SerializeAsString());
}
Result<std::vector<std::string>> encode(const pb::Response& response) {
  return cut(response.SerializeAsString());
}

Result<std::optional<std::string>> Assembler::add(ByteView packet) {
  if (packet.empty()) return bad("empty packet");
  const char kind = static_cast<char>(packet[0]);
  if (kind != kLast && kind != kMore) return bad("unknown kind of packet");
  if (kind == kMore && packet.size() == 1) return bad("packet that continues nothing");
  if (message_.size() + packet.size() - 1 > kMaxMessage)
    return fail(Reason::kLimitExceeded, Fault::kDownstream, "agent socket: message above 4 MiB");
  message_.append(as_text(packet.subspan(1)));
  if (kind == kMore) return std::optional<std::string>();
  return std::optional<std::string>(std::exchange(message_, {}));
}

Result<pb::Request> decode_request(std::string_view message) {
  pb::Request out;
  if (!out.ParseFromArray(message.data(), static_cast<int>(message.size())))
    return bad("malformed protobuf");
  switch (out.call_case()) {
    case pb::Request::kAdd:
      MELTEMI_TRY(check_pod(out.add()));
      MELTEMI_TRY(check("netns_path", out.add().netns_path(), kMaxPathBytes));
      if (out.add().addresses_size() > kMaxAddresses) return bad("more than 16 addresses");
      for (const std::string& a : out.add().addresses())
        if (a.size() != 4 && a.size() != 16) return bad("an address is neither 4 nor 16 bytes");
      break;
    case pb::Request::kDel:
      MELTEMI_TRY(check_pod(out.del()));
      MELTEMI_TRY(check("netns_path", out.del().netns_path(), kMaxPathBytes));
      break;
    case pb::Request::kCheck:
      MELTEMI_TRY(check_pod(out.check()));
      break;
    case pb::Request::kList:
      break;
    default:
      return bad("request without a known call");
  }
  return out;
}

Result<pb::Response> decode_response(std::string_view message) {
  pb::Response out;
  if (!out.ParseFromArray(message.data(), static_cast<int>(message.size())))
    return bad("malformed protobuf");
  return out;
}

}  // namespace meltemi::codec::local
