#include "ztunnel/unclaimed.h"

namespace meltemi::ztunnel {

void Unclaimed::add(pki::WorkloadCertificatePtr certificate) {
  const model::Identity identity = certificate->identity;
  waiting_[identity] = {std::move(certificate), std::nullopt};
}

pki::WorkloadCertificatePtr Unclaimed::claim(const model::Identity& identity) {
  auto node = waiting_.extract(identity);
  return node ? std::move(node.mapped().certificate) : nullptr;
}

std::vector<model::Identity> Unclaimed::expire(MonoTime now) {
  std::vector<model::Identity> out;
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Entry& entry = it->second;
    if (!entry.since) entry.since = now;
    if (now - *entry.since < kUnclaimedPatience) {
      ++it;
      continue;
    }
    out.push_back(it->first);
    it = waiting_.erase(it);
  }
  return out;
}

}  // namespace meltemi::ztunnel
