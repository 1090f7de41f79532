// The agent's socket protocol (api meltemi/local/v1/agent.proto) on AF_UNIX SOCK_SEQPACKET: cuts a
// message into packets and puts it together again. A packet is one byte (1: more packets of this
// message follow, 0: last) and then bytes of the message, so that a long list of pods fits.
// Bytes only: connecting, deadlines and SO_PEERCRED are the caller's.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "meltemi/local/v1/agent.pb.h"
#include "userspace/base/bytes.h"
#include "userspace/base/error.h"

namespace meltemi::codec::local {

inline constexpr size_t kMaxPacket = 32768;             // receive buffers
inline constexpr size_t kMaxMessage = 4 * 1024 * 1024;  // a reassembled message

// The packets of a message, in order, at least one. Fails (kLimitExceeded) above kMaxMessage.
Result<std::vector<std::string>> encode(const meltemi::local::v1::Request& request);
Result<std::vector<std::string>> encode(const meltemi::local::v1::Response& response);

// Gathers the packets of one message after another.
class Assembler {
 public:
  // The whole message when `packet` was its last one. Errors: kBadRequest (empty packet, unknown
  // first byte, a packet that says "more" and carries nothing), kLimitExceeded. After an error:
  // close the socket.
  Result<std::optional<std::string>> add(ByteView packet);

 private:
  std::string message_;
};

// Errors: kBadRequest (malformed, no call set, name or path above its limit or with control bytes).
Result<meltemi::local::v1::Request> decode_request(std::string_view message);
Result<meltemi::local::v1::Response> decode_response(std::string_view message);

}  // namespace meltemi::codec::local
