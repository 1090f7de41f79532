#include "userspace/model/identity.h"

#include <fmt/format.h>

namespace meltemi::model {
namespace {

bool is_name_char(char c, bool upper) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' ||
         (upper && c >= 'A' && c <= 'Z');
}

bool is_name(std::string_view text, bool upper) {
  if (text.empty() || text == "." || text == "..") return false;
  for (char c : text) {
    if (!is_name_char(c, upper)) return false;
  }
  return true;
}

auto refuse(std::string_view what) {
  return fail(Reason::kBadRequest, Fault::kDownstream, fmt::format("SPIFFE ID: {}", what));
}

}  // namespace

Result<Identity> Identity::make(std::string_view trust_domain, std::string_view ns,
                                std::string_view service_account) {
  if (!is_name(trust_domain, false)) return refuse("bad trust domain");
  if (trust_domain.size() > kMaxTrustDomain) return refuse("trust domain longer than 255 bytes");
  if (!is_name(ns, true)) return refuse("bad namespace");
  if (!is_name(service_account, true)) return refuse("bad service account");
  std::string uri;
  uri.reserve(kScheme.size() + trust_domain.size() + ns.size() + service_account.size() + 8);
  uri.append(kScheme).append(trust_domain).append("/ns/").append(ns).append("/sa/");
  uri.append(service_account);
  if (uri.size() > kMaxUri) return refuse("longer than 2048 bytes");
  Identity id;
  id.uri_ = Symbol(uri);
  id.trust_domain_ = static_cast<uint16_t>(trust_domain.size());
  id.ns_ = static_cast<uint16_t>(ns.size());
  return id;
}

Result<Identity> Identity::parse(std::string_view uri) {
  if (uri.size() > kMaxUri) return refuse("longer than 2048 bytes");
  if (!uri.starts_with(kScheme)) return refuse("scheme is not spiffe://");
  std::string_view rest = uri.substr(kScheme.size());
  std::string_view parts[5];
  for (size_t i = 0; i < 5; ++i) {
    const size_t slash = rest.find('/');
    if ((slash == std::string_view::npos) != (i == 4)) return refuse("not td/ns/NS/sa/SA");
    parts[i] = rest.substr(0, slash);
    if (i < 4) rest.remove_prefix(slash + 1);
  }
  if (parts[1] != "ns" || parts[3] != "sa") return refuse("not td/ns/NS/sa/SA");
  return make(parts[0], parts[2], parts[4]);
}

}  // namespace meltemi::model
