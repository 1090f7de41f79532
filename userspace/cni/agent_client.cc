// Connect, packets out, packets in; see agent_client.h.
#include "userspace/cni/agent_client.h"

#include <fmt/format.h>

#include "userspace/codec/local_frame.h"
#include "userspace/sys/packet.h"

namespace meltemi::cni {

Result<local::v1::Response> call_agent(const std::string& socket_path,
                                       const local::v1::Request& request, Duration timeout) {
  const MonoTime deadline = MonoClock::now() + timeout;
  const Result<UniqueFd> socket = sys::connect_packets(socket_path);
  if (!socket)
    return fail(Reason::kConnectRefused, Fault::kUpstream,
                fmt::format("no meltemi-agent serves {}: {}", socket_path, socket.error().detail));
  for (const std::string& packet : MELTEMI_TRY(codec::local::encode(request)))
    MELTEMI_TRY(sys::send_packet(socket->get(), as_bytes(packet), {}, timeout));
  codec::local::Assembler assembler;
  while (true) {
    const Duration left = std::max(Duration(1), Duration(deadline - MonoClock::now()));
    const sys::Packet packet =
        MELTEMI_TRY(sys::receive_packet(socket->get(), left, codec::local::kMaxPacket));
    const std::optional<std::string> message = MELTEMI_TRY(assembler.add(as_bytes(packet.bytes)));
    if (message) return codec::local::decode_response(*message);
  }
}

}  // namespace meltemi::cni
