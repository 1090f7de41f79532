// See certificate.h.
#include "userspace/pki/certificate.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/pki/ossl.h"
#include "userspace/pki/svid.h"

namespace meltemi::pki {
namespace {

ossl::Names alt_names(X509* cert) {
  // Null as well when the extension is there twice: then nothing in it is believed.
  return ossl::Names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr)));
}

std::string name_text(const X509_NAME* name) {
  const ossl::Bio bio(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(bio.get(), name, 0, XN_FLAG_RFC2253);
  return ossl::take(bio);
}

Reason reason_of_verify(int error) {
  switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED: return Reason::kCertExpired;
    case X509_V_ERR_CERT_NOT_YET_VALID: return Reason::kCertNotYetValid;
    case X509_V_ERR_CERT_REVOKED: return Reason::kPeerRevoked;
    default: return Reason::kTlsHandshake;
  }
}

std::string subject_or_uri(X509* cert) {
  const ossl::Names names = alt_names(cert);
  const auto uris = ossl::uris_of(names.get());
  return uris.empty() ? name_text(X509_get_subject_name(cert)) : uris.front();
}

}  // namespace

Result<Certificate> Certificate::from_der(ByteView der) {
  const unsigned char* p = der.data();
  ossl::Cert cert(d2i_X509(nullptr, &p, static_cast<long>(der.size())));
  if (!cert || p != der.data() + der.size()) {
    return fail(Reason::kBadRequest, Fault::kDownstream,
                ossl::last_error("not one DER certificate"));
  }
  // OpenSSL also reads BER; two encodings of one certificate would be two fingerprints of one peer.
  Certificate out = adopt({cert.release(), X509_free});
  if (out.to_der() != as_text(der)) {
    return fail(Reason::kBadRequest, Fault::kDownstream, "the certificate is not DER");
  }
  return out;
}

Certificate Certificate::adopt(std::shared_ptr<x509_st> cert) { return Certificate(std::move(cert)); }

Result<model::Identity> Certificate::identity() const {
  return svid_identity(cert_.get(), SvidRole::kBoth);
}

std::vector<std::string> Certificate::uris() const {
  return ossl::uris_of(alt_names(cert_.get()).get());
}

std::vector<std::string> Certificate::dns_names() const {
  std::vector<std::string> out;
  const ossl::Names names = alt_names(cert_.get());
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_DNS) continue;
    out.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                     static_cast<size_t>(ASN1_STRING_length(name->d.dNSName)));
  }
  return out;
}

std::vector<IpAddress> Certificate::ip_addresses() const {
  std::vector<IpAddress> out;
  const ossl::Names names = alt_names(cert_.get());
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_IPADD) continue;
    const ASN1_OCTET_STRING* ip = name->d.iPAddress;
    if (auto address = IpAddress::from_bytes(
            {ASN1_STRING_get0_data(ip), static_cast<size_t>(ASN1_STRING_length(ip))})) {
      out.push_back(*address);
    }
  }
  return out;
}

std::string Certificate::subject() const { return name_text(X509_get_subject_name(cert_.get())); }
std::string Certificate::issuer() const { return name_text(X509_get_issuer_name(cert_.get())); }

std::string Certificate::serial() const {
  const ossl::Number number(ASN1_INTEGER_to_BN(X509_get0_serialNumber(cert_.get()), nullptr));
  char* text = number ? BN_bn2dec(number.get()) : nullptr;
  std::string out = text != nullptr ? text : "";
  OPENSSL_free(text);
  return out;
}

WallTime Certificate::not_before() const {
  return ossl::to_wall(X509_get0_notBefore(cert_.get()));
}
WallTime Certificate::not_after() const { return ossl::to_wall(X509_get0_notAfter(cert_.get())); }
bool Certificate::is_ca() const { return X509_check_ca(cert_.get()) == 1; }

std::string Certificate::to_pem() const {
  const ossl::Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(bio.get(), cert_.get());
  return ossl::take(bio);
}

std::string Certificate::to_der() const {
  const ossl::Bio bio(BIO_new(BIO_s_mem()));
  i2d_X509_bio(bio.get(), cert_.get());
  return ossl::take(bio);
}

Result<std::vector<Certificate>> parse_bundle(std::string_view pem) {
  const auto bad = [](std::string detail) {
    return fail(Reason::kBadConfig, Fault::kConfig, "certificate bundle: " + std::move(detail));
  };
  if (pem.size() > kMaxPemBytes) return bad("larger than 1 MiB");
  std::vector<Certificate> out;
  const ossl::Bio bio = ossl::read_bio(pem);
  while (X509* cert = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    out.push_back(Certificate::adopt({cert, X509_free}));
    if (out.size() > kMaxPemCertificates) {
      return bad(fmt::format("more than {} certificates", kMaxPemCertificates));
    }
  }
  // The loop's last round always fails; only "no further PEM header" is the good end.
  const bool end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (!end) return bad(ossl::last_error("malformed"));
  ERR_clear_error();
  if (out.empty()) return bad("no certificate in it");
  return out;
}

Status verify_chain(const std::vector<Certificate>& chain, const std::vector<Certificate>& roots,
                    WallTime now, Usage usage) {
  if (chain.empty()) return fail(Reason::kTlsHandshake, Fault::kDownstream, "no certificate");
  const ossl::Owned<X509_STORE, X509_STORE_free> store(X509_STORE_new());
  for (const Certificate& root : roots) X509_STORE_add_cert(store.get(), root.native());
  STACK_OF(X509)* rest = sk_X509_new_null();
  for (size_t i = 1; i < chain.size(); ++i) sk_X509_push(rest, chain[i].native());
  const ossl::Owned<X509_STORE_CTX, X509_STORE_CTX_free> context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), chain.front().native(), rest);
  X509_VERIFY_PARAM* param = X509_STORE_CTX_get0_param(context.get());
  X509_VERIFY_PARAM_set_time(param, std::chrono::system_clock::to_time_t(now));
  if (usage != Usage::kAny) {
    X509_VERIFY_PARAM_set_purpose(
        param, usage == Usage::kServer ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT);
  }
  const bool good = X509_verify_cert(context.get()) == 1;
  Status status;
  if (!good) {
    const int error = X509_STORE_CTX_get_error(context.get());
    X509* about = X509_STORE_CTX_get_current_cert(context.get());
    status = fail(reason_of_verify(error), Fault::kDownstream,
                  fmt::format("certificate {}: {}",
                              subject_or_uri(about ? about : chain.front().native()),
                              X509_verify_cert_error_string(error)));
  }
  sk_X509_free(rest);
  ERR_clear_error();
  return status;
}

Result<WorkloadCertificatePtr> assemble(const PrivateKey& key, const model::Identity& identity,
                                        const std::vector<std::string>& chain_pem, WallTime now) {
  const auto unusable = [&](std::string detail) {
    return fail(Reason::kIdentityUnavailable, Fault::kUpstream,
                fmt::format("certificate for {}: {}", identity.uri(), detail));
  };
  if (chain_pem.size() < 2) return unusable("the CA sent no root");
  std::string joined;
  for (size_t i = 0; i + 1 < chain_pem.size(); ++i) joined += chain_pem[i] + "\n";
  auto chain = parse_bundle(joined);
  if (!chain) return unusable(chain.error().detail);
  auto roots = parse_bundle(chain_pem.back());
  if (!roots) return unusable(roots.error().detail);

  const Certificate& leaf = chain->front();
  const auto named = leaf.identity();
  if (!named) return unusable(named.error().detail);
  if (*named != identity) return unusable(fmt::format("the CA certified {}", named->uri()));
  for (size_t i = 1; i < chain->size(); ++i) {
    const Certificate& signer = (*chain)[i];
    const bool root = std::ranges::any_of(*roots, [&](const Certificate& r) {
      return X509_cmp(r.native(), signer.native()) == 0;
    });
    if (root) continue;  // sent along by some CAs
    if (const Status fit = check_svid_signer(signer.native()); !fit) {
      return unusable(fit.error().detail);
    }
  }
  if (EVP_PKEY_eq(X509_get0_pubkey(leaf.native()), key.native()) != 1) {
    return unusable("it holds another key than asked for");
  }
  if (const Status valid = verify_chain(*chain, *roots, now); !valid) {
    return unusable(valid.error().detail);
  }
  auto out = std::make_shared<WorkloadCertificate>(WorkloadCertificate{
      .identity = identity, .key = key, .chain = std::move(*chain), .roots = std::move(*roots),
      .not_before = {}, .not_after = {}, .chain_pem = {}, .roots_pem = {}});
  out->not_before = out->chain.front().not_before();
  out->not_after = out->chain.front().not_after();
  for (const Certificate& cert : out->chain) out->chain_pem += cert.to_pem();
  for (const Certificate& cert : out->roots) out->roots_pem += cert.to_pem();
  return out;
}

}  // namespace meltemi::pki
