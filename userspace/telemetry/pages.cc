// See pages.h.
#include "userspace/telemetry/pages.h"

#include <fmt/format.h>

#include <memory>
#include <mutex>

#include "userspace/base/log.h"
#include "userspace/base/log_levels.h"

namespace meltemi::telemetry {
namespace {

http::Response handle_logging(const http::Request& request, const std::string& defaults) {
  if (request.param("reset")) {
    if (Status s = log::reset_levels(defaults); !s) return {500, s.error().detail + "\n"};
    return {200, fmt::format("log levels reset to {}\n", defaults)};
  }
  const std::string* level = request.param("level");
  if (!level) return {200, fmt::format("current log level is {}\n", log::current_levels())};
  if (Status s = log::set_levels(*level); !s) return {400, s.error().detail + "\n"};
  return {200, fmt::format("current log level is {}\n", log::current_levels())};
}

class MetricsBody final : public http::BodySource {
 public:
  explicit MetricsBody(const Registry& registry) : reading_(registry.read()) {}
  bool more(std::string& out) override { return reading_.more(out); }

 private:
  Registry::Reading reading_;
};

}  // namespace

void add_metrics_routes(http::Router& router, const Registry& registry) {
  const auto handler = [&registry](const http::Request& request) {
    http::Response out;
    const bool open = request.accept().find("application/openmetrics-text") != std::string::npos;
    out.content_type = open ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                            : "text/plain; version=0.0.4; charset=utf-8";
    out.source = std::make_shared<MetricsBody>(registry);
    return out;
  };
  router.route("/metrics", "GET", handler);
  router.route("/stats/prometheus", "GET", handler);
}

void add_readiness_route(http::Router& router, const Readiness& readiness) {
  router.route("/healthz/ready", "GET", [&readiness](const http::Request&) {
    const Readiness::Verdict verdict = readiness.verdict();
    return http::Response{verdict.ready ? 200 : 500, verdict.text};
  });
}

void add_admin_routes(http::Router& router, std::string default_levels,
                      std::function<void()> quit) {
  router.route("/logging", "POST",
               [defaults = std::move(default_levels)](const http::Request& request) {
                 return handle_logging(request, defaults);
               }, http::Access::kLoopback);
  auto once = std::make_shared<std::once_flag>();
  router.route("/quitquitquit", "POST", [once, quit = std::move(quit)](const http::Request&) {
    std::call_once(*once, quit);
    return http::Response{200, "shutdown now\n"};
  }, http::Access::kLoopback);
}

void add_server_metrics(Registry& registry, const http::Server& server) {
  registry.add([&server](Exposition& out) {
    static constexpr std::string_view kWhy[] = {"why"};
    if (const uint64_t failures = server.certificate_failures(); failures > 0) {
      out.family("meltemi_http_certificate_failures_total", MetricType::kCounter,
                 "Renewed certificates of operators' ports that could not be used");
      out.sample("meltemi_http_certificate_failures_total", {}, {}, failures);
    }
    const auto cuts = server.cuts();
    if (cuts.empty()) return;
    out.family("meltemi_http_connections_cut_total", MetricType::kCounter,
               "Connections to the operators' pages that were ended early");
    for (const auto& cut : cuts) {
      const std::string_view why[] = {cut.why};
      out.sample("meltemi_http_connections_cut_total", kWhy, why, cut.count);
    }
  });
}

}  // namespace meltemi::telemetry
