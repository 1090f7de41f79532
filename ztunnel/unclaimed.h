// Certificates that the agent kept of an earlier ztunnel and that no pod of the node has asked for yet. What
// nobody asks for, once it is known who is here, has to go: its identity left while no ztunnel ran, and a
// key must not outlive that. Not thread safe.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/pki/certificate.h"

namespace meltemi::ztunnel {

// Between the mesh being known and the end of a key that nobody asked for: pods come over ZDS and are asked
// about meanwhile.
inline constexpr Duration kUnclaimedPatience = std::chrono::minutes(1);

class Unclaimed {
 public:
  void add(pki::WorkloadCertificatePtr certificate);
  // Null if there is none.
  pki::WorkloadCertificatePtr claim(const model::Identity& identity);
  // Call it again and again from when on the mesh is known. Takes out and returns the identities whose
  // certificates have waited for kUnclaimedPatience since the first such call.
  std::vector<model::Identity> expire(MonoTime now);
  size_t size() const { return waiting_.size(); }

 private:
  struct Entry {
    pki::WorkloadCertificatePtr certificate;
    std::optional<MonoTime> since;
  };
  std::map<model::Identity, Entry> waiting_;
};

}  // namespace meltemi::ztunnel
