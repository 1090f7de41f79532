// See kept_certificate.h. The text: a line "meltemi-kept 1", a line with the SPIFFE ID, a line with the
// lengths of key, chain and roots, then these.
#include "userspace/pki/kept_certificate.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace meltemi::pki {
namespace {

constexpr std::string_view kFirstLine = "meltemi-kept 1";

std::unexpected<Error> bad(std::string_view detail) {
  return fail(Reason::kBadRequest, Fault::kInternal, fmt::format("kept certificate: {}", detail));
}

Result<std::string_view> line(std::string_view& text) {
  const size_t end = text.find('\n');
  if (end == text.npos) return bad("cut short");
  const std::string_view out = text.substr(0, end);
  text.remove_prefix(end + 1);
  return out;
}

Result<std::array<size_t, 3>> lengths(std::string_view text) {
  std::array<size_t, 3> out{};
  for (size_t& length : out) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    if (error != std::errc() || length > kMaxKeptBytes) return bad("malformed lengths");
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (text.starts_with(' ')) text.remove_prefix(1);
  }
  if (!text.empty()) return bad("malformed lengths");
  return out;
}

}  // namespace

Secret keep_text(const WorkloadCertificate& c) {
  const Secret key = c.key.to_pem();
  const std::string head = fmt::format("{}\n{}\n{} {} {}\n", kFirstLine, c.identity.uri(),
                                       key.view().size(), c.chain_pem.size(), c.roots_pem.size());
  std::string text;
  // In one piece: a string that grows leaves its bytes behind.
  text.reserve(head.size() + key.view().size() + c.chain_pem.size() + c.roots_pem.size());
  text.append(head).append(key.view()).append(c.chain_pem).append(c.roots_pem);
  Secret out(text);
  wipe(text);
  return out;
}

Result<WorkloadCertificatePtr> from_kept_text(std::string_view text, WallTime now) {
  if (text.size() > kMaxKeptBytes) return bad("larger than 256 KiB");
  if (MELTEMI_TRY(line(text)) != kFirstLine) return bad("of another format");
  const auto identity = model::Identity::parse(MELTEMI_TRY(line(text)));
  if (!identity) return bad(identity.error().detail);
  const auto [key, chain, roots] = MELTEMI_TRY(lengths(MELTEMI_TRY(line(text))));
  if (key + chain + roots != text.size()) return bad("cut short or too long");
  const auto private_key = PrivateKey::from_pem(text.substr(0, key));
  if (!private_key) return bad("its key cannot be read");  // never a word of what is in it
  return assemble(*private_key, *identity,
                  {std::string(text.substr(key, chain)), std::string(text.substr(key + chain))}, now);
}

}  // namespace meltemi::pki
