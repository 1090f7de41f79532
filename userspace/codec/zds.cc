#include "userspace/codec/zds.h"

#include "userspace/codec/percent.h"
#include "zds/zds.pb.h"

namespace meltemi::codec::zds {
namespace {

namespace pb = istio::workload::zds;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadRequest, Fault::kDownstream, "ZDS: " + std::move(detail));
}

template <typename Message>
Status parse(ByteView packet, Message& out) {
  if (packet.size() > kMaxPacket) return bad("packet above 65536 bytes");
  if (!out.ParseFromArray(packet.data(), static_cast<int>(packet.size())))
    return bad("malformed protobuf");
  return {};
}

Status check_name(std::string_view what, std::string_view value) {
  if (value.size() > kMaxName) return bad(std::string(what) + " is longer than 253 bytes");
  if (has_control(value)) return bad(std::string(what) + " has control characters");
  return {};
}

Status check_uid(std::string_view uid) {
  if (uid.empty()) return bad("empty uid");
  return check_name("uid", uid);
}

template <typename Repeated>
Result<std::vector<FdKind>> kinds(const Repeated& values) {
  std::vector<FdKind> out;
  uint32_t seen = 0;
  for (const int v : values) {
    if (v < 0 || v > static_cast<int>(FdKind::kHbone)) return bad("unknown kind of descriptor");
    if (seen & 1u << v) return bad("the same kind of descriptor twice");
    seen |= 1u << v;
    out.push_back(static_cast<FdKind>(v));
  }
  return out;
}

Result<Request> decode_add(const pb::AddWorkload& m, size_t fds) {
  Add add;
  MELTEMI_TRY(check_uid(m.uid()));
  if (!m.has_workload_info()) return bad("AddWorkload without workload_info");
  add.uid = m.uid();
  add.info = {m.workload_info().name(), m.workload_info().namespace_(),
              m.workload_info().service_account()};
  MELTEMI_TRY(check_name("name", add.info.name));
  MELTEMI_TRY(check_name("namespace", add.info.namespace_name));
  MELTEMI_TRY(check_name("service account", add.info.service_account));
  if (m.fds_size() != 0) {
    add.fds = MELTEMI_TRY(kinds(m.fds()));
    if (add.fds[0] != FdKind::kNetns) return bad("the first descriptor must be the netns");
  }
  if (fds != add.fds.size())
    return bad("AddWorkload with " + std::to_string(fds) + " descriptors instead of " +
               std::to_string(add.fds.size()));
  return add;
}

template <typename Message>
void put_kinds(const std::vector<FdKind>& fds, Message& m) {
  for (const FdKind kind : fds) m.add_fds(static_cast<pb::FdKind>(kind));
}

}  // namespace

std::string encode(const Hello& hello) {
  pb::ZdsHello m;
  m.set_version(pb::V1);
  m.set_capabilities(hello.capabilities);
  return m.SerializeAsString();
}

Result<std::string> encode(const Request& request) {
  pb::WorkloadRequest m;
  size_t limit = kMaxIstioPacket;
  if (const auto* add = std::get_if<Add>(&request)) {
    auto* out = m.mutable_add();
    out->set_uid(add->uid);
    out->mutable_workload_info()->set_name(add->info.name);
    out->mutable_workload_info()->set_namespace_(add->info.namespace_name);
    out->mutable_workload_info()->set_service_account(add->info.service_account);
    if (add->fds != std::vector{FdKind::kNetns}) {
      put_kinds(add->fds, *out);
      limit = kMaxPacket;
    }
  } else if (const auto* keep = std::get_if<Keep>(&request)) {
    m.mutable_keep()->set_uid(keep->uid);
  } else if (const auto* del = std::get_if<Del>(&request)) {
    m.mutable_del()->set_uid(del->uid);
  } else if (const auto* get = std::get_if<GetListeners>(&request)) {
    m.mutable_get_listeners()->set_uid(get->uid);
    limit = kMaxPacket;
  } else {
    m.mutable_snapshot_sent();
  }
  std::string out = m.SerializeAsString();
  if (out.size() > limit)
    return fail(Reason::kLimitExceeded, Fault::kInternal,
                "ZDS: packet of " + std::to_string(out.size()) + " bytes");
  return out;
}

Result<std::string> encode(const Ack& ack) {
  pb::WorkloadResponse m;
  auto* out = m.mutable_ack();
  // Istio's agent reads at most 1024 bytes; leave room for tags and lengths.
  out->set_error(ack.error.substr(0, kMaxIstioPacket - 16));
  put_kinds(ack.fds, *out);
  std::string bytes = m.SerializeAsString();
  if (bytes.size() > kMaxIstioPacket)
    return fail(Reason::kLimitExceeded, Fault::kInternal, "ZDS: Ack above 1024 bytes");
  return bytes;
}

Result<Hello> decode_hello(ByteView packet) {
  pb::ZdsHello m;
  MELTEMI_TRY(parse(packet, m));
  if (m.version() != pb::V1) return bad("hello of an unknown version");
  return Hello{m.capabilities()};
}

Result<Request> decode_request(ByteView packet, size_t fds) {
  pb::WorkloadRequest m;
  MELTEMI_TRY(parse(packet, m));
  if (m.payload_case() == pb::WorkloadRequest::kAdd) return decode_add(m.add(), fds);
  if (fds != 0) return bad("descriptors with a message that takes none");
  switch (m.payload_case()) {
    case pb::WorkloadRequest::kKeep:
      MELTEMI_TRY(check_uid(m.keep().uid()));
      return Keep{m.keep().uid()};
    case pb::WorkloadRequest::kDel:
      MELTEMI_TRY(check_uid(m.del().uid()));
      return Del{m.del().uid()};
    case pb::WorkloadRequest::kGetListeners:
      MELTEMI_TRY(check_uid(m.get_listeners().uid()));
      return GetListeners{m.get_listeners().uid()};
    case pb::WorkloadRequest::kSnapshotSent:
      return SnapshotSent{};
    default:
      return bad("request without a known payload");
  }
}

Result<Ack> decode_ack(ByteView packet, size_t fds) {
  pb::WorkloadResponse m;
  MELTEMI_TRY(parse(packet, m));
  if (!m.has_ack()) return bad("response without an ack");
  Ack ack;
  ack.error = m.ack().error();
  ack.fds = MELTEMI_TRY(kinds(m.ack().fds()));
  if (fds != ack.fds.size()) return bad("ack whose descriptors do not fit its list");
  return ack;
}

}  // namespace meltemi::codec::zds
