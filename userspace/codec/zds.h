// ZDS: the packets between agent (server) and ztunnel (client) on AF_UNIX SOCK_SEQPACKET, one
// protobuf message a packet (package istio.workload.zds; facts of Istio's peer: hello `08 01`, ack
// `0A 00`, snapshot_sent `1A 00`). This is the bytes only: file descriptors travel beside the
// packet and stay with the caller, who says how many came.
//
// Capabilities: without kListenerFds in the client's Hello the bytes are exactly Istio's. The client
// puts a field of the extension into an answer only where the request was one of the extension: an
// Istio agent reads 1024 bytes of an answer and takes no descriptor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"

namespace meltemi::codec::zds {

// An Istio peer reads into a buffer of this size; encode() of its messages never exceeds it.
inline constexpr size_t kMaxIstioPacket = 1024;
inline constexpr size_t kMaxPacket = 65536;  // receive buffers; packets of the extension
inline constexpr size_t kMaxFds = 4;         // SCM_RIGHTS of one packet
inline constexpr size_t kMaxName = 253;      // uid, namespace, name, service account: bytes each

inline constexpr uint32_t kListenerFds = 1;  // Hello.capabilities bit

enum class FdKind : uint8_t { kNetns = 0, kOutbound = 1, kInbound = 2, kHbone = 3 };

struct Hello {
  uint32_t capabilities = 0;
  bool operator==(const Hello&) const = default;
};
struct WorkloadInfo {
  std::string name;
  std::string namespace_name;
  std::string service_account;
  bool operator==(const WorkloadInfo&) const = default;
};
// What the fds of the packet are, in order: [kNetns] from Istio (then `fds` is empty on the wire
// and filled in by decoding), or kNetns first and then any of the listeners, each once.
struct Add {
  std::string uid;
  WorkloadInfo info;
  std::vector<FdKind> fds{FdKind::kNetns};
  bool operator==(const Add&) const = default;
};
struct Keep {
  std::string uid;
  bool operator==(const Keep&) const = default;
};
struct Del {
  std::string uid;
  bool operator==(const Del&) const = default;
};
struct SnapshotSent {
  bool operator==(const SnapshotSent&) const = default;
};
// Extension: asks for a pod's listeners back.
struct GetListeners {
  std::string uid;
  bool operator==(const GetListeners&) const = default;
};
using Request = std::variant<Add, Keep, Del, SnapshotSent, GetListeners>;

struct Ack {
  std::string error;        // empty: done
  std::vector<FdKind> fds;  // extension, answer to GetListeners; listeners only
  bool operator==(const Ack&) const = default;
};

std::string encode(const Hello& hello);
// Fails (kLimitExceeded) when the packet would be above kMaxIstioPacket for an Add, Keep, Del or
// SnapshotSent, and kMaxPacket for the extension's.
Result<std::string> encode(const Request& request);
// An error text is cut so that the packet fits an Istio peer. Error kLimitExceeded: above
// kMaxIstioPacket all the same.
Result<std::string> encode(const Ack& ack);

// `fds`: how many descriptors came with the packet. Errors (kBadRequest): malformed protobuf, no or
// unknown payload, a name above kMaxName or with control bytes, an empty uid, an Add without
// workload_info, a number or order of fds that does not fit the message. The caller closes the fds.
Result<Hello> decode_hello(ByteView packet);  // also: a version that is not V1
Result<Request> decode_request(ByteView packet, size_t fds);
Result<Ack> decode_ack(ByteView packet, size_t fds);

}  // namespace meltemi::codec::zds
