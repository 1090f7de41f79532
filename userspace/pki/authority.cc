// See authority.h. What is on disk is always usable: keys are written before the certificates that
// need them, and load() makes again whatever a crash left without its other half.
#include "userspace/pki/authority.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "userspace/base/log.h"
#include "userspace/pki/ossl.h"
#include "userspace/pki/rotation.h"
#include "userspace/pki/x509_builder.h"
#include "userspace/sys/files.h"

namespace meltemi::pki {
namespace {

log::Scope scope("ca");

constexpr uint32_t kSecretMode = 0600, kPublicMode = 0644, kDirectoryMode = 0755;
constexpr double kIssuerRenewal = 0.5, kRootRenewal = 0.8;  // shares of the lifetime

// Error if nobody can tell: a key that is taken for missing would be made anew.
Result<bool> exists(const std::string& path) {
  if (::access(path.c_str(), F_OK) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  return fail_errno(errno, "look for " + path);
}

bool same(const Certificate& a, const Certificate& b) {
  return X509_cmp(a.native(), b.native()) == 0;
}
bool matches(const Certificate& cert, const PrivateKey& key) {
  return EVP_PKEY_eq(X509_get0_pubkey(cert.native()), key.native()) == 1;
}
bool signed_by(const Certificate& cert, const Certificate& issuer) {
  return X509_verify(cert.native(), X509_get0_pubkey(issuer.native())) == 1;
}
bool past(const Certificate& cert, double share, WallTime now) {
  const auto age = std::chrono::duration<double>(now - cert.not_before());
  const auto life = std::chrono::duration<double>(cert.not_after() - cert.not_before());
  return age >= life * share;
}

std::string bundle_of(const std::vector<Certificate>& certs) {
  std::string out;
  for (const Certificate& cert : certs) out += cert.to_pem();
  return out;
}

Status in_file(const std::string& path, const Error& error) {
  return fail(Reason::kBadConfig, Fault::kConfig, path + ": " + error.detail);
}

Result<PrivateKey> read_key(const std::string& path) {
  std::string pem = MELTEMI_TRY(sys::read_file(path));
  auto key = PrivateKey::from_pem(pem);
  wipe(pem);
  if (!key) return fail(in_file(path, key.error()).error());
  return key;
}
Result<std::vector<Certificate>> read_certs(const std::string& path) {
  auto certs = parse_bundle(MELTEMI_TRY(sys::read_file(path)));
  if (!certs) return fail(in_file(path, certs.error()).error());
  return certs;
}

}  // namespace

struct CertificateAuthority::Material {
  std::optional<PrivateKey> root_key;  // none: plugged-in CA
  std::vector<Certificate> roots;      // trusted; the signing one first if we have its key
  std::optional<PrivateKey> issuer_key;
  std::vector<Certificate> issuer_chain;  // issuer first, then further intermediates
  std::optional<PrivateKey> next_key;
  std::optional<Certificate> next_root, retired_root;

  bool plugged() const { return !root_key; }
  const Certificate& issuer() const { return issuer_chain.front(); }
};

CertificateAuthority::CertificateAuthority(AuthorityOptions options)
    : options_(std::move(options)) {}

std::string CertificateAuthority::path(std::string_view file) const {
  return fmt::format("{}/{}", options_.directory, file);
}

std::shared_ptr<const CertificateAuthority::Material> CertificateAuthority::material() const {
  const std::lock_guard lock(mutex_);
  return material_;
}

void CertificateAuthority::adopt(std::shared_ptr<const Material> material) {
  const std::lock_guard lock(mutex_);
  material_ = std::move(material);
}

Result<Certificate> CertificateAuthority::new_root(const PrivateKey& key, WallTime now) const {
  // The name differs from root to root, so that nobody picks an issuer by name alone.
  return build_certificate(
      {.kind = CertificateKind::kRoot,
       .organization = options_.trust_domain,
       .common_name = fmt::format(
           "Meltemi root {}", std::chrono::system_clock::to_time_t(now)),
       .not_before = now - options_.backdate,
       .not_after = now + options_.root_ttl},
      key.native(), nullptr, key);
}

Status CertificateAuthority::write_bundle(const Material& m) const {
  return sys::write_file_atomically(path("root-cert.pem"), bundle_of(m.roots), kPublicMode);
}

Status CertificateAuthority::make_issuer(Material& m, WallTime now) const {
  const PrivateKey key = MELTEMI_TRY(PrivateKey::generate());
  const Certificate cert = MELTEMI_TRY(build_certificate(
      {.kind = CertificateKind::kIssuer,
       .organization = options_.trust_domain,
       .common_name = fmt::format("Meltemi issuer {}", std::chrono::system_clock::to_time_t(now)),
       .not_before = std::max(now - options_.backdate, m.roots.front().not_before()),
       .not_after = std::min(now + options_.issuer_ttl, m.roots.front().not_after())},
      key.native(), &m.roots.front(), *m.root_key));
  MELTEMI_TRY(sys::write_file_atomically(path("ca-key.pem"), key.to_pem().view(), kSecretMode));
  MELTEMI_TRY(sys::write_file_atomically(path("ca-cert.pem"), cert.to_pem(), kPublicMode));
  m.issuer_key = key;
  m.issuer_chain = {cert};
  scope.info("new issuer {} valid until {}", cert.serial(), format_rfc3339(cert.not_after()));
  return {};
}

Result<CertificateAuthority::Material> CertificateAuthority::load_plugged() const {
  Material m;
  m.issuer_key = MELTEMI_TRY(read_key(path("ca-key.pem")));
  m.issuer_chain = MELTEMI_TRY(read_certs(path("ca-cert.pem")));
  m.roots = MELTEMI_TRY(read_certs(path("root-cert.pem")));
  if (MELTEMI_TRY(exists(path("cert-chain.pem")))) {
    for (Certificate& cert : MELTEMI_TRY(read_certs(path("cert-chain.pem")))) {
      const auto known = [&](const Certificate& c) { return same(c, cert); };
      if (std::ranges::none_of(m.issuer_chain, known) && std::ranges::none_of(m.roots, known)) {
        m.issuer_chain.push_back(std::move(cert));
      }
    }
  }
  return m;
}

Result<CertificateAuthority::Material> CertificateAuthority::load(WallTime now) const {
  const bool have_root = MELTEMI_TRY(exists(path("root-key.pem")));
  const bool have_issuer = MELTEMI_TRY(exists(path("ca-key.pem"))) && MELTEMI_TRY(exists(path("ca-cert.pem")));
  if (!have_root && have_issuer) return load_plugged();
  if (!have_root && MELTEMI_TRY(exists(path("root-cert.pem")))) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("{} is there without root-key.pem or ca-key.pem: add the key, or remove "
                            "the file to start a new mesh root",
                            path("root-cert.pem")));
  }
  Material m;
  if (have_root) {
    m.root_key = MELTEMI_TRY(read_key(path("root-key.pem")));
  } else {
    m.root_key = MELTEMI_TRY(PrivateKey::generate());
    MELTEMI_TRY(
        sys::write_file_atomically(path("root-key.pem"), m.root_key->to_pem().view(), kSecretMode));
  }
  if (MELTEMI_TRY(exists(path("root-cert.pem")))) m.roots = MELTEMI_TRY(read_certs(path("root-cert.pem")));
  const auto active = std::ranges::find_if(
      m.roots, [&](const Certificate& cert) { return matches(cert, *m.root_key); });
  if (active != m.roots.end()) {
    std::rotate(m.roots.begin(), active, active + 1);
  } else {
    m.roots.insert(m.roots.begin(), MELTEMI_TRY(new_root(*m.root_key, now)));
    MELTEMI_TRY(write_bundle(m));
    scope.info("new mesh root {} for trust domain {}", m.roots.front().subject(),
               options_.trust_domain);
  }
  if (MELTEMI_TRY(exists(path("next-root-key.pem"))) && MELTEMI_TRY(exists(path("next-root-cert.pem")))) {
    m.next_key = MELTEMI_TRY(read_key(path("next-root-key.pem")));
    m.next_root = MELTEMI_TRY(read_certs(path("next-root-cert.pem"))).front();
  }
  if (MELTEMI_TRY(exists(path("retired-root-cert.pem")))) {
    m.retired_root = MELTEMI_TRY(read_certs(path("retired-root-cert.pem"))).front();
  }
  if (have_issuer) {
    m.issuer_key = MELTEMI_TRY(read_key(path("ca-key.pem")));
    m.issuer_chain = MELTEMI_TRY(read_certs(path("ca-cert.pem")));
  }
  if (!have_issuer || !matches(m.issuer(), *m.issuer_key) || m.issuer().not_after() <= now) {
    MELTEMI_TRY(make_issuer(m, now));
  }
  return m;
}

Result<std::unique_ptr<CertificateAuthority>> CertificateAuthority::open(AuthorityOptions options,
                                                                         WallTime now) {
  MELTEMI_TRY(sys::make_directories(options.directory, kDirectoryMode));
  std::unique_ptr<CertificateAuthority> ca(new CertificateAuthority(std::move(options)));
  Material m = MELTEMI_TRY(ca->load(now));
  if (!matches(m.issuer(), *m.issuer_key)) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                ca->path("ca-cert.pem") + ": holds another key than ca-key.pem");
  }
  if (const Status valid = verify_chain(m.issuer_chain, m.roots, now); !valid) {
    return fail(in_file(ca->path("ca-cert.pem"), valid.error()).error());
  }
  ca->adopt(std::make_shared<const Material>(std::move(m)));
  return ca;
}

// What is signed ends with the first certificate above it that ends; of several roots the one that
// lasts longest counts, since which of them a peer holds is not known here.
Result<CertificateAuthority::Validity> CertificateAuthority::leaf_validity(
    const Material& m, std::chrono::seconds ttl, WallTime now) const {
  if (ttl <= std::chrono::seconds(0)) ttl = options_.default_ttl;
  WallTime end = m.roots.front().not_after();
  for (const Certificate& root : m.roots) end = std::max(end, root.not_after());
  WallTime begin = m.issuer().not_before();
  for (const Certificate& cert : m.issuer_chain) {
    end = std::min(end, cert.not_after());
    begin = std::max(begin, cert.not_before());
  }
  const WallTime to = std::min<WallTime>(now + std::min(ttl, options_.max_ttl), end);
  if (to <= now) {
    return fail(Reason::kIdentityUnavailable, Fault::kConfig,
                fmt::format("the CA's own certificate ended at {}: nothing is signed with it",
                            format_rfc3339(end)));
  }
  const auto back = std::min<WallTime::duration>(options_.backdate, (to - now) / kBackdateShare);
  return Validity{.from = std::max(now - back, begin), .to = to};
}

Result<std::vector<std::string>> CertificateAuthority::issue(const CertificateRequest& request,
                                                             const model::Identity& identity,
                                                             std::chrono::seconds ttl,
                                                             WallTime now) {
  if (!identity.present() || identity.trust_domain() != options_.trust_domain) {
    return fail(Reason::kPermission, Fault::kDownstream,
                fmt::format("{} is not of trust domain {}", identity.uri(), options_.trust_domain));
  }
  const auto m = material();
  const Validity valid = MELTEMI_TRY(leaf_validity(*m, ttl, now));
  const Certificate leaf = MELTEMI_TRY(build_certificate(
      {.kind = CertificateKind::kWorkload,
       .uri = std::string(identity.uri()),
       .not_before = valid.from,
       .not_after = valid.to},
      request.public_key(), &m->issuer(), *m->issuer_key));
  std::vector<std::string> out{leaf.to_pem()};
  for (const Certificate& cert : m->issuer_chain) out.push_back(cert.to_pem());
  out.push_back(bundle_of(m->roots));
  ++issued_;
  return out;
}

Result<CertificateAuthority::ServerCertificate> CertificateAuthority::issue_server(
    const PrivateKey& key, const std::vector<std::string>& dns_names, const std::vector<IpAddress>& addresses,
    WallTime now) {
  const auto m = material();
  const Validity valid = MELTEMI_TRY(leaf_validity(*m, options_.default_ttl, now));
  const Certificate leaf = MELTEMI_TRY(build_certificate(
      {.kind = CertificateKind::kServer,
       .organization = options_.trust_domain,
       .dns_names = dns_names,
       .addresses = addresses,
       .not_before = valid.from,
       .not_after = valid.to},
      key.native(), &m->issuer(), *m->issuer_key));
  ServerCertificate out{.chain_pem = leaf.to_pem(), .not_before = leaf.not_before(), .not_after = leaf.not_after()};
  for (const Certificate& cert : m->issuer_chain) out.chain_pem += cert.to_pem();
  return out;
}

Status CertificateAuthority::start_next_root(Material& m, WallTime now) const {
  const PrivateKey key = MELTEMI_TRY(PrivateKey::generate());
  const Certificate cert = MELTEMI_TRY(new_root(key, now));
  MELTEMI_TRY(sys::write_file_atomically(path("next-root-key.pem"), key.to_pem().view(), kSecretMode));
  MELTEMI_TRY(sys::write_file_atomically(path("next-root-cert.pem"), cert.to_pem(), kPublicMode));
  m.roots.push_back(cert);
  MELTEMI_TRY(write_bundle(m));
  m.next_key = key;
  m.next_root = cert;
  scope.info("root rotation: {} joins the trusted roots", cert.subject());
  return {};
}

Status CertificateAuthority::activate_next_root(Material& m) const {
  const Certificate old = m.roots.front();
  MELTEMI_TRY(
      sys::write_file_atomically(path("retired-root-cert.pem"), old.to_pem(), kPublicMode));
  // From this write on the new root signs, also after a crash: load() goes by this key.
  MELTEMI_TRY(sys::write_file_atomically(path("root-key.pem"), m.next_key->to_pem().view(), kSecretMode));
  const auto next = std::ranges::find_if(
      m.roots, [&](const Certificate& cert) { return same(cert, *m.next_root); });
  if (next != m.roots.end()) {
    std::rotate(m.roots.begin(), next, next + 1);
  } else {
    m.roots.insert(m.roots.begin(), *m.next_root);
  }
  m.root_key = m.next_key;
  m.retired_root = old;
  m.next_key.reset();
  m.next_root.reset();
  MELTEMI_TRY(write_bundle(m));
  ::unlink(path("next-root-key.pem").c_str());
  ::unlink(path("next-root-cert.pem").c_str());
  scope.info("root rotation: {} signs from now on", m.roots.front().subject());
  return {};
}

Status CertificateAuthority::drop_retired_root(Material& m) const {
  std::erase_if(m.roots, [&](const Certificate& cert) { return same(cert, *m.retired_root); });
  MELTEMI_TRY(write_bundle(m));
  scope.info("root rotation: {} is no longer trusted", m.retired_root->subject());
  m.retired_root.reset();
  ::unlink(path("retired-root-cert.pem").c_str());
  return {};
}

Result<bool> CertificateAuthority::rotate(WallTime now) {
  const std::lock_guard one_at_a_time(rotation_mutex_);
  Material m = *material();
  const std::string before = bundle_of(m.roots) + bundle_of(m.issuer_chain);
  if (m.plugged()) {
    m = MELTEMI_TRY(load_plugged());
    if (!matches(m.issuer(), *m.issuer_key)) {
      return fail(Reason::kBadConfig, Fault::kConfig,
                  path("ca-cert.pem") + ": holds another key than ca-key.pem; the old one stays");
    }
    MELTEMI_TRY(verify_chain(m.issuer_chain, m.roots, now));
  } else {
    const auto age = [&](const Certificate& c) { return now - (c.not_before() + options_.backdate); };
    if (m.next_root && age(*m.next_root) >= options_.max_ttl) MELTEMI_TRY(activate_next_root(m));
    if (!m.next_root && !m.retired_root && past(m.roots.front(), kRootRenewal, now)) {
      MELTEMI_TRY(start_next_root(m, now));
    }
    const bool current = signed_by(m.issuer(), m.roots.front());
    if (!current || past(m.issuer(), kIssuerRenewal, now)) {
      MELTEMI_TRY(make_issuer(m, now));
    } else if (m.retired_root && age(m.issuer()) >= options_.max_ttl) {
      MELTEMI_TRY(drop_retired_root(m));
    }
  }
  if (bundle_of(m.roots) + bundle_of(m.issuer_chain) == before) return false;
  adopt(std::make_shared<const Material>(std::move(m)));
  return true;
}

Status CertificateAuthority::begin_root_rotation(WallTime now) {
  const std::lock_guard one_at_a_time(rotation_mutex_);
  Material m = *material();
  if (m.plugged()) {
    return fail(Reason::kUnsupported, Fault::kConfig,
                "the CA is plugged in: rotate its root where it comes from");
  }
  if (m.next_root || m.retired_root) {
    return fail(Reason::kUnsupported, Fault::kConfig, "a root rotation is under way already");
  }
  MELTEMI_TRY(start_next_root(m, now));
  adopt(std::make_shared<const Material>(std::move(m)));
  return {};
}

std::string CertificateAuthority::root_bundle_pem() const { return bundle_of(material()->roots); }
std::vector<Certificate> CertificateAuthority::roots() const { return material()->roots; }
uint64_t CertificateAuthority::issued() const { return issued_; }

}  // namespace meltemi::pki
