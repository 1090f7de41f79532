#include "userspace/config/istio_defaults.h"

#include <fmt/format.h>

#include "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.pb.h"
#include "userspace/config/units.h"

namespace meltemi::config {

namespace hcm = ::envoy::extensions::filters::network::http_connection_manager::v3;
namespace rt = ::envoy::config::route::v3;
namespace cl = ::envoy::config::cluster::v3;
namespace upstream = ::envoy::extensions::upstreams::http::v3;

void set_istio_defaults(PathNormalization paths, hcm::HttpConnectionManager* out) {
  using Manager = hcm::HttpConnectionManager;
  // Envoy ends a stream after 5 min without a byte; long polls and quiet gRPC streams live longer.
  out->mutable_stream_idle_timeout();
  out->set_server_header_transformation(Manager::PASS_THROUGH);
  out->add_upgrade_configs()->set_upgrade_type("websocket");
  out->mutable_http2_protocol_options()->mutable_max_concurrent_streams()->set_value(
      kMaxConcurrentStreams);
  out->mutable_normalize_path()->set_value(paths != PathNormalization::kNone);
  out->set_merge_slashes(paths == PathNormalization::kMergeSlashes ||
                         paths == PathNormalization::kDecodeAndMergeSlashes);
  out->set_path_with_escaped_slashes_action(paths == PathNormalization::kDecodeAndMergeSlashes
                                                ? Manager::UNESCAPE_AND_FORWARD
                                                : Manager::KEEP_UNCHANGED);
}

void name_config(std::string_view kind, const Object& object,
                 ::envoy::config::core::v3::Metadata* out) {
  // The version is part of the text, whatever the object's own was.
  (*(*out->mutable_filter_metadata())["istio"].mutable_fields())["config"].set_string_value(
      fmt::format("/apis/networking.istio.io/v1alpha3/namespaces/{}/{}/{}", object.ns(), kind,
                  object.name()));
}

void set_cluster_defaults(cl::Cluster* out) {
  out->mutable_connect_timeout()->set_seconds(kConnectTimeoutSeconds);
  auto* limits = out->mutable_circuit_breakers()->add_thresholds();
  limits->mutable_max_connections()->set_value(kUnlimited);
  limits->mutable_max_pending_requests()->set_value(kUnlimited);
  limits->mutable_max_requests()->set_value(kUnlimited);
  limits->mutable_max_retries()->set_value(kUnlimited);
  limits->set_track_remaining(true);
  out->mutable_common_lb_config()->mutable_healthy_panic_threshold();
}

void set_http_options(const upstream::HttpProtocolOptions& options, cl::Cluster* out) {
  constexpr const char* kName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
  pack_any(options, &(*out->mutable_typed_extension_protocol_options())[kName]);
}

void speak_like_the_client(cl::Cluster* out) {
  upstream::HttpProtocolOptions options;
  options.mutable_use_downstream_protocol_config()->mutable_http_protocol_options();
  options.mutable_use_downstream_protocol_config()->mutable_http2_protocol_options();
  set_http_options(options, out);
}

void set_safe_retries(rt::RetryPolicy* out) {
  out->set_retry_on("connect-failure,refused-stream,reset-before-request");
  out->mutable_num_retries()->set_value(kRetryAttempts);
  avoid_previous_hosts(out);
}

void avoid_previous_hosts(rt::RetryPolicy* out) {
  auto* predicate = out->add_retry_host_predicate();
  predicate->set_name("envoy.retry_host_predicates.previous_hosts");
  pack_any(::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate(),
           predicate->mutable_typed_config());
  out->set_host_selection_retry_max_attempts(kHostSelections);
}

}  // namespace meltemi::config
