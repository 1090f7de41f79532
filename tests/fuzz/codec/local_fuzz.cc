// ZDS, kept keys and the agent's socket: any packet is decoded or refused, and what was decoded means the same
// after being encoded again.
#include "tests/fuzz/codec/input.h"
#include "userspace/codec/key_packet.h"
#include "userspace/codec/local_frame.h"
#include "userspace/codec/zds.h"

using namespace meltemi;
using namespace meltemi::codec;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const uint8_t choice = in.byte();
  const size_t fds = choice >> 4;
  if (choice & 1) {
    codec::local::Assembler assembler;
    while (!in.empty()) {
      const auto got = assembler.add(in.bytes(in.byte()));
      if (!got) return 0;
      if (!*got) continue;
      if (const auto request = codec::local::decode_request(**got))
        fuzz::require(codec::local::encode(*request).has_value());
      if (const auto response = codec::local::decode_response(**got))
        fuzz::require(codec::local::encode(*response).has_value());
    }
    return 0;
  }
  const ByteView packet = in.rest();
  if (const auto request = zds::decode_request(packet, fds)) {
    const auto encoded = zds::encode(*request);
    if (encoded) fuzz::require(zds::decode_request(as_bytes(*encoded), fds).value() == *request);
    if (const auto* add = std::get_if<zds::Add>(&*request)) fuzz::require(add->fds.size() == fds);
  }
  if (const auto ack = zds::decode_ack(packet, fds)) {
    const auto encoded = zds::encode(*ack);
    if (encoded && ack->error.size() < 1000)
      fuzz::require(zds::decode_ack(as_bytes(*encoded), fds).value() == *ack);
  }
  if (const auto kept = keys::decode(packet, fds))
    fuzz::require(keys::decode(as_bytes(keys::encode(*kept)), fds).value() == *kept);
  if (const auto hello = zds::decode_hello(packet))
    fuzz::require(zds::decode_hello(as_bytes(zds::encode(*hello))).value() == *hello);
  return 0;
}
