// Legal names and how hosts are written: DNS-1123 labels and domains, wildcard hosts, short service
// names, label syntax. Pure text functions, used by validation, analysis and translation.
#pragma once

#include <string>
#include <string_view>

namespace meltemi::config {

bool is_dns_label(std::string_view text);      // RFC 1123 label, ≤63
bool is_dns_subdomain(std::string_view text);  // Kubernetes object name: labels with dots, ≤253
// A domain as istiod accepts it: ≤255, legal labels, top label not all digits, may end in ".".
bool is_fqdn(std::string_view text);
// The same, or with "*" as the whole of the first label.
bool is_wildcard_domain(std::string_view text);
// Kubernetes label syntax: [prefix/]name, and value ≤63 (may be empty).
bool is_label_key(std::string_view text);
bool is_label_value(std::string_view text);
// Port name: lower-case alphanumerics and "-", ≤15, at least one letter.
bool is_port_name(std::string_view text);
// HTTP token (RFC 9110 section 5.6.2).
bool is_http_token(std::string_view text);

// "catalog" in namespace shop -> "catalog.shop.svc.cluster.local"; anything with a dot, and "*",
// stays.
std::string expand_host(std::string_view host, std::string_view ns, std::string_view domain);
std::string service_host(std::string_view name, std::string_view ns, std::string_view domain);
// Whether host pattern `pattern` ("a.b", "*.b", "*") covers `host`.
bool host_matches(std::string_view pattern, std::string_view host);

}  // namespace meltemi::config
