// SPIFFE identities of workloads: spiffe://TD/ns/NS/sa/SA and no other form (facts: Istio's peers
// accept exactly this). Must never be made from anything but a verified certificate or xDS.
#pragma once

#include <functional>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/model/symbol.h"

namespace meltemi::model {

class Identity {
 public:
  // Longest accepted URI, in bytes (SPIFFE-ID specification, section 2.3).
  static constexpr size_t kMaxUri = 2048;
  // Of a trust domain (section 2.1).
  static constexpr size_t kMaxTrustDomain = 255;

  Identity() = default;  // no identity (a plaintext peer)

  // Exact parse: lower-case scheme, five parts, none empty; characters of a trust domain are
  // [a-z0-9.-_], of namespace and service account [A-Za-z0-9.-_]. No percent-encoding, query,
  // fragment or port. Error: kBadRequest with the offending part.
  static Result<Identity> parse(std::string_view uri);
  // Same character rules.
  static Result<Identity> make(std::string_view trust_domain, std::string_view ns,
                               std::string_view service_account);

  bool present() const { return !uri_.empty(); }
  std::string_view uri() const { return uri_.view(); }  // spiffe://td/ns/x/sa/y
  const Symbol& symbol() const { return uri_; }         // the same, interned
  // Without "spiffe://": what policies call a principal.
  std::string_view principal() const { return present() ? uri().substr(kScheme.size()) : uri(); }
  std::string_view trust_domain() const { return principal().substr(0, trust_domain_); }
  std::string_view ns() const {
    return present() ? principal().substr(trust_domain_ + 4, ns_) : uri();
  }
  std::string_view service_account() const {
    return present() ? principal().substr(trust_domain_ + 4 + ns_ + 4) : uri();
  }

  friend bool operator==(const Identity& a, const Identity& b) { return a.uri_ == b.uri_; }
  friend auto operator<=>(const Identity& a, const Identity& b) { return a.uri_ <=> b.uri_; }
  size_t hash() const { return uri_.hash(); }

 private:
  static constexpr std::string_view kScheme = "spiffe://";
  Symbol uri_;
  uint16_t trust_domain_ = 0;  // lengths
  uint16_t ns_ = 0;
};

}  // namespace meltemi::model

template <>
struct std::hash<meltemi::model::Identity> {
  size_t operator()(const meltemi::model::Identity& i) const noexcept { return i.hash(); }
};
