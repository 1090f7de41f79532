// HPACK: the vectors of RFC 7541 appendix C, what must be refused, and both directions against
// nghttp2's coder on random header lists.
#include <gtest/gtest.h>
#include <nghttp2/nghttp2.h>

#include <random>
#include <string>
#include <vector>

#include "userspace/codec/hpack_read.h"
#include "userspace/codec/hpack_write.h"

namespace meltemi::codec::hpack {
namespace {

using namespace std::string_literals;

std::string unhex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return out;
}

// "name: value|name: value"; std::nullopt for an error.
std::optional<std::string> show(Decoder& d, std::string_view block) {
  std::string out;
  const bool good = d.decode(as_bytes(block), [&](const Field& f) {
    if (!out.empty()) out += '|';
    out += std::string(f.name) + ": " + std::string(f.value) + (f.never_indexed ? "!" : "");
  });
  d.trim();
  if (!good) return std::nullopt;
  return out;
}

TEST(HpackRead, Rfc7541AppendixC) {
  constexpr std::string_view kDate = "date: Mon, 21 Oct 2013 20:13:21 GMT";
  const std::string response =
      ": 302|cache-control: private|" + std::string(kDate) + "|location: https://www.example.com";
  struct Block {
    std::string hex, fields;
    uint32_t table;
  };
  struct Sequence {
    uint32_t size;
    std::vector<Block> blocks;
  };
  const std::vector<Block> requests = {
      {"828684410f7777772e6578616d706c652e636f6d",
       ":method: GET|:scheme: http|:path: /|:authority: www.example.com", 57},
      {"828684be58086e6f2d6361636865",
       ":method: GET|:scheme: http|:path: /|:authority: www.example.com|cache-control: no-cache",
       110},
      {"828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
       ":method: GET|:scheme: https|:path: /index.html|:authority: www.example.com|custom-key: "
       "custom-value",
       164}};
  std::vector<Block> huffman_requests = requests;
  huffman_requests[0].hex = "828684418cf1e3c2e5f23a6ba0ab90f4ff";
  huffman_requests[1].hex = "828684be5886a8eb10649cbf";
  huffman_requests[2].hex = "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf";
  const std::vector<Block> responses = {
      {"4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
       "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
       ":status" + response, 222},
      {"4803333037c1c0bf",
       ":status: 307|cache-control: private|" + std::string(kDate) +
           "|location: https://www.example.com",
       222},
      {"88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f"
       "3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076"
       "657273696f6e3d31",
       ":status: 200|cache-control: private|date: Mon, 21 Oct 2013 20:13:22 GMT|location: "
       "https://www.example.com|content-encoding: gzip|set-cookie: "
       "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
       215}};
  std::vector<Block> huffman_responses = responses;
  huffman_responses[0].hex =
      "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b"
      "97c8e9ae82ae43d3";
  huffman_responses[1].hex = "4883640effc1c0bf";
  huffman_responses[2].hex =
      "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdf"
      "cd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007";
  for (const Sequence& sequence : {Sequence{4096, requests}, Sequence{4096, huffman_requests},
                                   Sequence{256, responses}, Sequence{256, huffman_responses}}) {
    Decoder d(sequence.size);
    for (const Block& b : sequence.blocks) {
      EXPECT_EQ(show(d, unhex(b.hex)), b.fields);
      EXPECT_EQ(d.table_bytes(), b.table);
    }
  }
  // C.2: the single representations.
  Decoder d;
  EXPECT_EQ(show(d, unhex("400a637573746f6d2d6b65790d637573746f6d2d686561646572")),
            "custom-key: custom-header");
  EXPECT_EQ(d.table_bytes(), 55u);
  EXPECT_EQ(show(d, unhex("040c2f73616d706c652f70617468")), ":path: /sample/path");
  EXPECT_EQ(show(d, unhex("100870617373776f726406736563726574")), "password: secret!");
  EXPECT_EQ(show(d, unhex("82")), ":method: GET");
  EXPECT_EQ(d.table_entries(), 1u);
}

TEST(HpackRead, Refuses) {
  for (const char* hex : {
           "80",                  // index 0
           "be",                  // index 62 of an empty table
           "ff",                  // an integer without its end
           "ffffffffffffffff7f",  // an integer without bound
           "ffffffff7f",          // far beyond any table
           "7e00",                // a name at an index that is not there
           "00",                  // a literal without its name
           "000161",              // and without its value
           "0005616263",          // a string longer than the block
           "0001618100",          // Huffman: padding that is not ones
           "00016182ffff",        // Huffman: more than 7 bits of padding
           "00016184ffffffff",    // Huffman: EOS
           "3fe21f",              // a table above our limit (4097)
           "8220",                // a size update behind a field
           "3f",                  // a size update without its end
       }) {
    Decoder d;
    EXPECT_EQ(show(d, unhex(hex)), std::nullopt) << hex;
  }
}

TEST(HpackRead, SizeUpdates) {
  Decoder d;
  EXPECT_EQ(show(d, "\x40\1a\1b"s), "a: b");
  EXPECT_EQ(show(d, "\xbe"), "a: b");
  EXPECT_EQ(show(d, "\x20\x3f\xe1\x1f\x82"s), ":method: GET") << "to 0, then to 4096";
  EXPECT_EQ(d.table_entries(), 0u);
  EXPECT_EQ(show(d, "\xbe"), std::nullopt);
}

TEST(HpackRead, EvictionUnderTheNameThatIsUsed) {
  Decoder d(64);
  const std::string n(20, 'n'), v(10, 'v'), w(12, 'w');
  EXPECT_EQ(show(d, "\x40\x14" + n + "\x0a" + v), n + ": " + v);
  // A new value for the name at index 62, which goes to make room for it (RFC 7541 section 4.4).
  EXPECT_EQ(show(d, "\x7e\x0c" + w), n + ": " + w);
  EXPECT_EQ(d.table_entries(), 1u);
  EXPECT_EQ(show(d, "\xbe"), n + ": " + w);
  // Too large for the table: not an error, empties it.
  EXPECT_EQ(show(d, "\x40\x01x\x40" + std::string(64, 'y')), "x: " + std::string(64, 'y'));
  EXPECT_EQ(d.table_entries(), 0u);
}

TEST(HpackRead, KindsComeFromTheTableToo) {
  Decoder d;
  std::vector<FieldKind> kinds;
  const std::string block = "\x40\1a\3b\nc\x40\2te\4gzip\xbe\xbf\x82\xb9"s;
  ASSERT_TRUE(d.decode(as_bytes(block), [&](const Field& f) { kinds.push_back(f.kind); }));
  EXPECT_EQ(kinds, (std::vector<FieldKind>{FieldKind::kMalformed, FieldKind::kConnectionSpecific,
                                           FieldKind::kConnectionSpecific, FieldKind::kMalformed,
                                           FieldKind::kMethod, FieldKind::kConnectionSpecific}));
}

TEST(HpackRead, HuffmanOfEveryByte) {
  nghttp2_hd_deflater* deflater = nullptr;
  for (int c = 0; c < 256; ++c) {
    // A long run of a common byte makes nghttp2 choose Huffman whatever the other one costs.
    const std::string value = std::string(40, 'e') + static_cast<char>(c) + "a";
    ASSERT_EQ(nghttp2_hd_deflate_new(&deflater, 4096), 0);
    std::string name = "x";
    nghttp2_nv nv{reinterpret_cast<uint8_t*>(name.data()),
                  reinterpret_cast<uint8_t*>(const_cast<char*>(value.data())), 1, value.size(), 0};
    uint8_t out[256];
    const ssize_t n = nghttp2_hd_deflate_hd(deflater, out, sizeof out, &nv, 1);
    nghttp2_hd_deflate_del(deflater);
    ASSERT_GT(n, 0);
    ASSERT_LT(static_cast<size_t>(n), value.size()) << "it is Huffman";
    Decoder d;
    EXPECT_EQ(show(d, as_text({out, static_cast<size_t>(n)})), "x: " + value) << c;
  }
}

// Random lists in which fields come again, with names and values of many sizes.
class Lists {
 public:
  HeaderList next() {
    HeaderList list;
    for (int i = below(12); i >= 0; --i) {
      if (below(8) == 0) {
        list.add("authorization", "secret");
      } else if (below(10) == 0) {
        list.add("x-" + std::to_string(below(9)), std::string(below(3000), 'a' + below(26)));
      } else if (below(3) == 0) {
        list.add("x-request-id", std::to_string(random_()));
      } else {
        list.add("name-" + std::to_string(below(40)), "value " + std::to_string(below(3)));
      }
    }
    return list;
  }
  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }

 private:
  std::mt19937 random_{7541};
};

std::string show(const HeaderList& list) {
  std::string out;
  for (const HeaderField f : list)
    out += (out.empty() ? "" : "|") + std::string(f.name) + ": " + std::string(f.value);
  return out;
}

TEST(HpackOracle, WeReadWhatNghttp2Writes) {
  nghttp2_hd_deflater* deflater = nullptr;
  ASSERT_EQ(nghttp2_hd_deflate_new(&deflater, 4096), 0);
  Decoder d;
  Lists lists;
  for (int i = 0; i < 3000; ++i) {
    if (i % 100 == 50)
      nghttp2_hd_deflate_change_table_size(deflater, static_cast<size_t>(lists.below(4097)));
    const HeaderList list = lists.next();
    std::vector<nghttp2_nv> nv;
    for (const HeaderField f : list)
      nv.push_back({reinterpret_cast<uint8_t*>(const_cast<char*>(f.name.data())),
                    reinterpret_cast<uint8_t*>(const_cast<char*>(f.value.data())), f.name.size(),
                    f.value.size(), NGHTTP2_NV_FLAG_NONE});
    std::string block(100'000, '\0');
    const ssize_t n = nghttp2_hd_deflate_hd(deflater, reinterpret_cast<uint8_t*>(block.data()),
                                            block.size(), nv.data(), nv.size());
    ASSERT_GT(n, 0);
    block.resize(static_cast<size_t>(n));
    auto got = show(d, block);
    ASSERT_TRUE(got.has_value());
    std::erase(*got, '!');
    ASSERT_EQ(*got, show(list)) << i;
    ASSERT_EQ(d.table_bytes(), nghttp2_hd_deflate_get_dynamic_table_size(deflater));
  }
  nghttp2_hd_deflate_del(deflater);
}

// One block by Encoder, as the session calls it.
std::string encode(Encoder& encoder, const HeaderList& list) {
  std::string block;
  encoder.begin_block(block);
  for (const HeaderField f : list)
    if (!encoder.write_known(block, f)) encoder.write_new(block, f);
  return block;
}

struct Inflater {
  nghttp2_hd_inflater* inflater = nullptr;
  Inflater() { nghttp2_hd_inflate_new(&inflater); }
  ~Inflater() { nghttp2_hd_inflate_del(inflater); }
  std::optional<std::string> read(std::string_view block) {
    std::string out;
    ByteView in = as_bytes(block);
    while (true) {
      nghttp2_nv nv;
      int flags = 0;
      const ssize_t n = nghttp2_hd_inflate_hd2(inflater, &nv, &flags, in.data(), in.size(), 1);
      if (n < 0) return std::nullopt;
      in = in.subspan(static_cast<size_t>(n));
      if ((flags & NGHTTP2_HD_INFLATE_EMIT) != 0) {
        if (!out.empty()) out += '|';
        out += as_text({nv.name, nv.namelen});
        out += ": ";
        out += as_text({nv.value, nv.valuelen});
        if ((nv.flags & NGHTTP2_NV_FLAG_NO_INDEX) != 0) out += '!';
      }
      if ((flags & NGHTTP2_HD_INFLATE_FINAL) != 0) break;
    }
    nghttp2_hd_inflate_end_headers(inflater);
    return out;
  }
};

TEST(HpackOracle, Nghttp2ReadsWhatWeWrite) {
  Inflater theirs;
  Decoder ours;
  Encoder encoder;
  Lists lists;
  for (int i = 0; i < 3000; ++i) {
    if (i % 100 == 50) {
      for (int k = lists.below(3); k >= 0; --k) {  // several SETTINGS between two blocks
        const auto limit = static_cast<uint32_t>(lists.below(3) == 0 ? 0 : lists.below(6000));
        encoder.set_peer_limit(limit);
        nghttp2_hd_inflate_change_table_size(theirs.inflater, limit);
      }
    }
    if (i % 170 == 20) {  // a block that was begun and is not sent
      std::string unsent;
      encoder.begin_block(unsent);
      for (const HeaderField f : lists.next())
        if (!encoder.write_known(unsent, f)) encoder.write_new(unsent, f);
      encoder.forget();
    }
    const HeaderList list = lists.next();
    const std::string block = encode(encoder, list);
    auto got = theirs.read(block);
    ASSERT_TRUE(got.has_value()) << i;
    EXPECT_EQ(got->find("authorization: secret!") == std::string::npos,
              show(list).find("authorization") == std::string::npos);
    std::erase(*got, '!');
    ASSERT_EQ(*got, show(list)) << i;
    ASSERT_EQ(encoder.table_bytes(), nghttp2_hd_inflate_get_dynamic_table_size(theirs.inflater));
    auto again = show(ours, block);
    ASSERT_TRUE(again.has_value());
    std::erase(*again, '!');
    EXPECT_EQ(*again, show(list));
    ASSERT_EQ(encoder.table_entries(), ours.table_entries());
  }
}

TEST(HpackWrite, WhatRepeatsBecomesOneByte) {
  Encoder encoder;
  HeaderList list;
  list.add(":status", "200");
  list.add("content-type", "application/json");
  list.add("x-custom", "value");
  const size_t first = encode(encoder, list).size();
  encode(encoder, list);
  EXPECT_EQ(encode(encoder, list).size(), list.size());
  EXPECT_GT(first, 20u);
}

TEST(HpackWrite, WhatDoesNotRepeatStaysOutOfTheTable) {
  Encoder encoder;
  for (int i = 0; i < 100; ++i) {
    HeaderList list;
    list.add("x-request-id", "id " + std::to_string(i));
    encode(encoder, list);
  }
  EXPECT_EQ(encoder.table_entries(), 0u);
}

TEST(HpackWrite, SecretsAreNeverIndexed) {
  Encoder encoder;
  HeaderList list;
  list.add("authorization", "Bearer abc");
  list.add("proxy-authorization", "Basic abc");
  list.add("cookie", "short");
  list.add("set-cookie", "a=b");
  list.add("x-asked", "for it", true);
  for (int i = 0; i < 5; ++i) {
    const std::string block = encode(encoder, list);
    EXPECT_EQ(encoder.table_entries(), 0u);
    Inflater theirs;
    const auto got = theirs.read(block).value();
    EXPECT_EQ(std::count(got.begin(), got.end(), '!'), 5) << got;
  }
  // A field that asks for it now, though it is in the table.
  HeaderList plain, secret;
  plain.add("x-asked", "for it");
  secret.add("x-asked", "for it", true);
  encode(encoder, plain);
  encode(encoder, plain);
  EXPECT_EQ(encoder.table_entries(), 1u);
  Decoder d;
  EXPECT_EQ(encode(encoder, plain).size(), 1u);
  EXPECT_EQ(static_cast<uint8_t>(encode(encoder, secret)[0]) & 0xf0, 0x10);
}

}  // namespace
}  // namespace meltemi::codec::hpack
