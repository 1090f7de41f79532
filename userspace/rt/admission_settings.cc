// See admission_settings.h.
#include "userspace/rt/admission_settings.h"

#include <algorithm>

namespace meltemi::rt {

using std::chrono::hours;
using std::chrono::milliseconds;

void AdmissionSettings::describe(ConfigTable& t) {
  t.number(&max_connections, "max-connections", "MAX_CONNECTIONS", "connections", 0, 10'000'000,
           "Connections at once. One source or pod holds at most as many as are still free. 0: "
           "what the limit of descriptors allows.");
  t.number(&max_pending, "max-pending-handshakes", "MAX_PENDING_HANDSHAKES", "connections", 0,
           1'000'000,
           "Connections that have not finished their handshake; the oldest gives way. 0: a quarter "
           "of the descriptors, at most 4096.");
  t.duration(&first_byte_timeout, "first-byte-timeout", "FIRST_BYTE_TIMEOUT", milliseconds(10),
             hours(1), "How long a connection may be silent where its client speaks first.");
  t.duration(&handshake_timeout, "handshake-timeout", "HANDSHAKE_TIMEOUT", milliseconds(10),
             hours(1), "Limit of a TLS handshake.");
  t.number(&handshake_rate, "handshake-rate", "HANDSHAKE_RATE", "handshakes per second", 1,
           1'000'000,
           "New handshakes of one source (an IPv4 address or IPv6 /64), in bursts of two seconds' "
           "worth.");
}

AdmissionOptions AdmissionSettings::options(uint64_t limit, uint32_t each) const {
  AdmissionOptions o = AdmissionOptions::for_limit(limit);
  if (max_connections > 0) {
    const uint64_t wanted = static_cast<uint64_t>(max_connections) * each;
    o.descriptors = std::min(o.descriptors, AdmissionOptions::with_room_for(wanted));
    o.pending = std::min(o.pending, std::max<uint64_t>(32, o.descriptors / 4));
  }
  if (max_pending > 0) o.pending = static_cast<uint64_t>(max_pending);
  o.first_byte = first_byte_timeout;
  o.handshake = handshake_timeout;
  o.handshake_rate = static_cast<double>(handshake_rate);
  o.handshake_burst = 2 * o.handshake_rate;
  return o;
}

}  // namespace meltemi::rt
