#include "userspace/config/names.h"

#include <fmt/format.h>

namespace meltemi::config {
namespace {

bool is_lower(char c) {
  return c >= 'a' && c <= 'z';
}
bool is_upper(char c) {
  return c >= 'A' && c <= 'Z';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_alnum(char c) {
  return is_lower(c) || is_upper(c) || is_digit(c);
}

bool is_label_chars(std::string_view text, bool upper) {
  if (text.empty() || text.size() > 63 || text.front() == '-' || text.back() == '-') return false;
  for (char c : text) {
    if (!is_lower(c) && !is_digit(c) && c != '-' && !(upper && is_upper(c))) return false;
  }
  return true;
}

// Calls `each` for every dot-separated part; false as soon as `each` says so.
template <typename F>
bool each_part(std::string_view text, F&& each) {
  while (true) {
    size_t dot = text.find('.');
    if (!each(text.substr(0, dot), dot == std::string_view::npos)) return false;
    if (dot == std::string_view::npos) return true;
    text.remove_prefix(dot + 1);
  }
}

// A name made of alphanumerics with -, _ and . inside.
bool is_qualified_part(std::string_view text) {
  if (text.empty() || text.size() > 63 || !is_alnum(text.front()) || !is_alnum(text.back())) {
    return false;
  }
  for (char c : text) {
    if (!is_alnum(c) && c != '-' && c != '_' && c != '.') return false;
  }
  return true;
}

}  // namespace

bool is_dns_label(std::string_view text) {
  return is_label_chars(text, false);
}

bool is_dns_subdomain(std::string_view text) {
  if (text.empty() || text.size() > 253) return false;
  return each_part(text, [](std::string_view part, bool) { return is_label_chars(part, false); });
}

bool is_fqdn(std::string_view text) {
  if (text.ends_with('.')) text.remove_suffix(1);
  if (text.empty() || text.size() > 255) return false;
  return each_part(text, [](std::string_view part, bool last) {
    if (!is_label_chars(part, true)) return false;
    return !last || part.find_first_not_of("0123456789") != std::string_view::npos;
  });
}

bool is_wildcard_domain(std::string_view text) {
  if (text == "*") return true;
  if (text.starts_with("*.")) text.remove_prefix(2);
  return is_fqdn(text);
}

bool is_label_key(std::string_view text) {
  size_t slash = text.find('/');
  if (slash != std::string_view::npos) {
    if (!is_dns_subdomain(text.substr(0, slash))) return false;
    text.remove_prefix(slash + 1);
  }
  return is_qualified_part(text);
}

bool is_label_value(std::string_view text) {
  return text.empty() || is_qualified_part(text);
}

bool is_port_name(std::string_view text) {
  if (text.size() > 15 || !is_label_chars(text, false)) return false;
  for (char c : text) {
    if (is_lower(c)) return true;
  }
  return false;
}

bool is_http_token(std::string_view text) {
  if (text.empty()) return false;
  for (char c : text) {
    if (!is_alnum(c) && std::string_view("!#$%&'*+-.^_`|~").find(c) == std::string_view::npos) {
      return false;
    }
  }
  return true;
}

std::string service_host(std::string_view name, std::string_view ns, std::string_view domain) {
  return fmt::format("{}.{}.svc.{}", name, ns, domain);
}

std::string expand_host(std::string_view host, std::string_view ns, std::string_view domain) {
  if (host.empty() || host == "*" || host.find('.') != std::string_view::npos) {
    return std::string(host);
  }
  return service_host(host, ns, domain);
}

bool host_matches(std::string_view pattern, std::string_view host) {
  if (pattern == "*") return true;
  if (pattern.starts_with("*.")) return host.ends_with(pattern.substr(1));
  return pattern == host;
}

}  // namespace meltemi::config
