// HPACK: the decoder must agree with nghttp2's on every block, and must read what our encoder
// writes.
#include <nghttp2/nghttp2.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/hpack_read.h"
#include "userspace/codec/hpack_write.h"

using namespace meltemi;
using namespace meltemi::codec;

namespace {

// Fields as text; false: the block is not HPACK.
bool nghttp2_read(nghttp2_hd_inflater* inflater, ByteView in, std::string& out) {
  while (true) {
    nghttp2_nv nv;
    int flags = 0;
    const ssize_t n = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, in.data(), in.size(), 1);
    if (n < 0) return false;
    in = in.subspan(static_cast<size_t>(n));
    if ((flags & NGHTTP2_HD_INFLATE_EMIT) != 0) {
      out += as_text({nv.name, nv.namelen});
      out += '\0';
      out += as_text({nv.value, nv.valuelen});
      out += '\0';
    }
    if ((flags & NGHTTP2_HD_INFLATE_FINAL) != 0) break;
  }
  nghttp2_hd_inflate_end_headers(inflater);
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  hpack::Decoder decoder, echo;
  hpack::Encoder encoder;
  nghttp2_hd_inflater* theirs = nullptr;
  nghttp2_hd_inflate_new(&theirs);
  while (!in.empty()) {
    const ByteView block = in.bytes(1 + in.byte());
    std::string ours, expected, written, again;
    HeaderList list;
    const bool good = decoder.decode(block, [&](const hpack::Field& f) {
      ours += std::string(f.name) + '\0' + std::string(f.value) + '\0';
      list.add(f.name, f.value, f.never_indexed);
      fuzz::require(f.kind == classify_field(f.name, f.value));
    });
    decoder.trim();
    const bool same = nghttp2_read(theirs, block, expected);
    // nghttp2 has limits for a string's length and a number of bits that no block here reaches.
    fuzz::require(good == same);
    if (!good) break;
    fuzz::require(ours == expected);
    fuzz::require(decoder.table_bytes() == nghttp2_hd_inflate_get_dynamic_table_size(theirs));
    encoder.set_peer_limit(uint32_t{in.byte()} * 20);
    encoder.begin_block(written);
    for (const HeaderField f : list)
      if (!encoder.write_known(written, f)) encoder.write_new(written, f);
    fuzz::require(echo.decode(as_bytes(written), [&](const hpack::Field& f) {
      again += std::string(f.name) + '\0' + std::string(f.value) + '\0';
    }));
    fuzz::require(again == ours);
    fuzz::require(echo.table_bytes() == encoder.table_bytes());
  }
  nghttp2_hd_inflate_del(theirs);
  return 0;
}
