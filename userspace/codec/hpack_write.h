// Internal to codec: HPACK (RFC 7541) writing without a dynamic table and without Huffman coding.
// Stateless, so that nothing is kept per connection and writing a field costs a copy. It must never
// be used together with an encoder that has state on the same connection.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace meltemi::codec::hpack {

// First byte(s) of a connection's first header block: the peer may free its table, and later
// changes of SETTINGS_HEADER_TABLE_SIZE need no answer from us.
inline constexpr uint8_t kNoDynamicTable = 0x20;

void write_status(std::string& out, uint16_t status);  // 100..999
void write_method_connect(std::string& out);
void write_authority(std::string& out, std::string_view authority);
// Literal without indexing, name spelled out; upper-case ASCII in the name becomes lower case.
void write_field(std::string& out, std::string_view name, std::string_view value);

}  // namespace meltemi::codec::hpack
