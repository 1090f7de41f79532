// Rows and listeners; see operator_ports.h.
#include "userspace/telemetry/operator_ports.h"

#include <fmt/format.h>

#include "userspace/telemetry/admission_metrics.h"

namespace meltemi::telemetry {

void OperatorSettings::describe(ConfigTable& t) {
  t.text(&admin_listen, "admin-listen", "ADMIN_LISTEN", "Address of /config_dump and the like.");
  t.text(&metrics_listen, "metrics-listen", "METRICS_LISTEN", "Address of /metrics.");
  t.text(&metrics_tls.certificate, "metrics-tls-cert-file", "METRICS_TLS_CERT_FILE",
         "Certificate chain (PEM) with which /metrics is served over TLS 1.3; read again when it "
         "changes. Default: no TLS.");
  t.text(&metrics_tls.key, "metrics-tls-key-file", "METRICS_TLS_KEY_FILE",
         "Private key (PEM) of the metrics certificate.");
  t.text(&metrics_tls.client_roots, "metrics-tls-client-ca-file", "METRICS_TLS_CLIENT_CA_FILE",
         "Roots (PEM) of the certificates that scrapers must show. Default: none is asked for.");
  t.text(&readiness_listen, "readiness-listen", "READINESS_LISTEN", "Address of /healthz/ready.");
}

Status OperatorSettings::check() const {
  for (const auto& [row, value] : {std::pair("admin-listen", &admin_listen),
                                   std::pair("metrics-listen", &metrics_listen),
                                   std::pair("readiness-listen", &readiness_listen)}) {
    if (!SocketAddress::parse(*value)) {
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("{} is \"{}\": use address:port", row, *value));
    }
  }
  return {};
}

Status OperatorPorts::start(const OperatorSettings& settings, Registry& registry,
                            const Readiness& readiness, std::string default_levels,
                            std::function<void()> quit) {
  add_admin_routes(admin_, std::move(default_levels), std::move(quit));
  add_metrics_routes(metrics_, registry);
  add_readiness_route(readiness_, readiness);
  add_server_metrics(registry, server_);
  if (own_admission_) add_admission_metrics(registry, server_.admission());
  const auto listen = [this](http::Router& router, std::string_view row, const std::string& at,
                             std::unique_ptr<http::CertificateFiles> certificate =
                                 nullptr) -> Status {
    auto bound = server_.listen(router, *SocketAddress::parse(at), std::move(certificate));
    if (bound) return {};
    Error error = bound.error();
    error.detail = fmt::format("--{}: {}", row, error.detail);
    return fail(std::move(error));
  };
  MELTEMI_TRY(listen(admin_, "admin-listen", settings.admin_listen));
  std::unique_ptr<http::CertificateFiles> certificate;
  if (!settings.metrics_tls.empty()) {
    certificate = MELTEMI_TRY(http::CertificateFiles::open(settings.metrics_tls));
  }
  MELTEMI_TRY(listen(metrics_, "metrics-listen", settings.metrics_listen, std::move(certificate)));
  MELTEMI_TRY(listen(readiness_, "readiness-listen", settings.readiness_listen));
  return server_.start();
}

void OperatorPorts::stop() { server_.stop(); }

}  // namespace meltemi::telemetry
