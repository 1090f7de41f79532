// Where Istio's value differs from the default that Envoy's API documents, in one place: a resource
// that leaves such a field out would mean Envoy's default to every proxy that reads it. The table in
// ARCHITECTURE.md has a row for each, also for those where we differ from Istio. Internal to
// translation; only values that hold where no object of the user says otherwise.
#pragma once

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/route/v3/route_components.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"
#include "userspace/config/mesh_config.h"
#include "userspace/config/object.h"

namespace meltemi::config {

inline constexpr int64_t kConnectTimeoutSeconds = 10;      // MeshConfig connectTimeout
inline constexpr uint32_t kUnlimited = 0xffffffff;         // every circuit breaker
inline constexpr uint32_t kMaxConcurrentStreams = 1024;    // Envoy's own since 1.36
inline constexpr uint32_t kRetryAttempts = 2;              // of a route, and of `retries` without any
inline constexpr uint32_t kHostSelections = 5;             // draws to find a host not yet tried

void set_istio_defaults(
    PathNormalization paths,
    ::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager* out);

// `filter_metadata.istio.config`: the object that a cluster or route was made of, in the words that
// istioctl reads its columns from. `kind`: "virtual-service", "destination-rule".
void name_config(std::string_view kind, const Object& object,
                 ::envoy::config::core::v3::Metadata* out);

// Connect timeout, no limits (and no retry budget: retries are bounded per request), no panic: an
// unhealthy endpoint is never chosen.
void set_cluster_defaults(::envoy::config::cluster::v3::Cluster* out);
void set_http_options(
    const ::envoy::extensions::upstreams::http::v3::HttpProtocolOptions& options,
    ::envoy::config::cluster::v3::Cluster* out);
// HTTP/2 to the endpoint if the client spoke it, else HTTP/1.1.
void speak_like_the_client(::envoy::config::cluster::v3::Cluster* out);

// For a route whose author says nothing about retries: only what provably was not processed.
void set_safe_retries(::envoy::config::route::v3::RetryPolicy* out);
// A retry goes to an endpoint that was not tried yet.
void avoid_previous_hosts(::envoy::config::route::v3::RetryPolicy* out);

}  // namespace meltemi::config
