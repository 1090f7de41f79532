// What JWS and JWK share: base64url and JSON, read strictly. Private to pki. Two readers that disagree
// about a token are how forgeries are made, so what can be read in two ways is refused.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace meltemi::pki::jose {

// Without padding (RFC 7515 section 2).
std::string encode64(std::string_view bytes);
// Only what encode64() writes: no padding, no other alphabet, left-over bits zero.
std::optional<std::string> decode64(std::string_view text);

inline constexpr int kMaxJsonDepth = 16;
// One JSON object; none if it is malformed, nested deeper, or has a member twice at any level.
std::optional<nlohmann::json> parse_object(std::string_view text);

}  // namespace meltemi::pki::jose
