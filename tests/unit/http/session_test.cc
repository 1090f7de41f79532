// The sans-io half of the server: requests split at every byte, limits, backpressure, upgrades.
#include "userspace/http/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "userspace/codec/h2.h"

namespace meltemi::http {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

ByteView bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Yields `pieces` pieces and counts what was asked for.
class Counted final : public BodySource {
 public:
  Counted(size_t pieces, size_t& asked) : left_(pieces), asked_(asked) {}
  bool more(std::string& out) override {
    ++asked_;
    out += "piece\n";
    return --left_ > 0;
  }

 private:
  size_t left_;
  size_t& asked_;
};

class H1 : public testing::Test {
 protected:
  std::string drain(size_t max = 1 << 20) {
    std::string out;
    session_->produce(out, max);
    return out;
  }
  std::string ask(std::string_view text) {
    session_->receive(bytes(text), MonoTime());
    return drain();
  }
  std::vector<Request> seen_;
  Response response_{200, "hello\n"};
  Session::Answer answer_ = [this](const Request& r) {
    seen_.push_back(r);
    return response_;
  };
  Limits limits_;
  std::unique_ptr<Session> session_ = make_h1_session(limits_, SocketAddress(), answer_);
};

TEST_F(H1, ARequestMayComeInAnyPieces) {
  const std::string text = "POST /x?a=b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
  for (size_t n = 0; n <= text.size(); ++n) {
    session_ = make_h1_session(limits_, SocketAddress(), answer_);
    seen_.clear();
    session_->receive(bytes(std::string_view(text).substr(0, n)), MonoTime());
    EXPECT_EQ(session_->reading(), n > 0 && n < text.size()) << n;
    session_->receive(bytes(std::string_view(text).substr(n)), MonoTime());
    ASSERT_EQ(seen_.size(), 1u) << n;
    EXPECT_EQ(seen_[0].body, "hello");
    EXPECT_EQ(seen_[0].path, "/x");
    EXPECT_THAT(drain(), StartsWith("HTTP/1.1 200 OK\r\n"));
    EXPECT_FALSE(session_->done());
  }
}

TEST_F(H1, PipelinedRequestsAreAnsweredInOrder) {
  const std::string out =
      ask("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  ASSERT_EQ(seen_.size(), 2u);
  EXPECT_EQ(seen_[1].path, "/2");
  EXPECT_THAT(out, HasSubstr("connection: close"));
  EXPECT_TRUE(session_->done());
}

TEST_F(H1, AStreamedBodyIsMadeOnlyAsTheClientReads) {
  size_t asked = 0;
  response_.source = std::make_shared<Counted>(1000, asked);
  session_->receive(bytes("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), MonoTime());
  EXPECT_EQ(asked, 0u);
  std::string all = drain(200);
  EXPECT_LT(asked, 30u) << "no more than there is room for";
  EXPECT_TRUE(session_->responding());
  EXPECT_FALSE(session_->wants_input());
  while (session_->responding()) all += drain(4096);
  EXPECT_EQ(asked, 1000u);
  EXPECT_THAT(all, EndsWith("0\r\n\r\n"));
  EXPECT_THAT(all, HasSubstr("transfer-encoding: chunked"));
}

TEST_F(H1, LimitsEndTheConnectionWithTheirStatus) {
  const std::pair<std::string, const char*> cases[] = {
      {"GET / HTTP/1.1\r\nHost: h\r\nA: " + std::string(20000, 'a') + "\r\n\r\n", " 431 "},
      {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n", " 413 "},
      {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n11000\r\n" +
           std::string(0x11000, 'x') + "\r\n", " 413 "},
      {"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", " 400 "},
      {"GET / HTTP/1.1\r\n\r\n", " 400 "},
      {"GET / HTTP/3.0\r\nHost: h\r\n\r\n", " 505 "},
      {"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", " 405 "},
      {"\x16\x03\x01\xff\xff", " 400 "},
  };
  for (const auto& [text, status] : cases) {
    session_ = make_h1_session(limits_, SocketAddress(), answer_);
    const std::string answer = ask(text);
    EXPECT_THAT(answer, HasSubstr(status)) << text.substr(0, 60);
    EXPECT_THAT(answer, HasSubstr("\r\ndate: ")) << text.substr(0, 60);
    EXPECT_EQ(answer.find("\r\nallow: ") != std::string::npos, status == std::string(" 405 "));
    EXPECT_TRUE(session_->done()) << text.substr(0, 60);
    EXPECT_EQ(ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), "") << "nothing behind it is a request";
  }
  EXPECT_TRUE(seen_.empty());
}

TEST_F(H1, AHeaderOfOursThatWouldSplitTheResponseIsAnError) {
  response_.headers.emplace_back("x", "a\r\nset-cookie: b");
  const std::string out = ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(out, StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(out, Not(HasSubstr("set-cookie")));
}

TEST_F(H1, AnUpgradeHandsOverTheConnectionAndWhatCameEarly) {
  std::string early = "nothing";
  response_ = {101, ""};
  response_.headers = {{"upgrade", "x"}, {"connection", "upgrade"}};
  response_.upgrade = [&](net::StreamPtr, std::string e, rt::Lease) { early = std::move(e); };
  const std::string out =
      ask("GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nearly");
  EXPECT_THAT(out, StartsWith("HTTP/1.1 101 "));
  auto upgrade = session_->take_upgrade();
  ASSERT_TRUE(upgrade);
  upgrade->take(nullptr, upgrade->early, {});
  EXPECT_EQ(early, "early");
}

TEST_F(H1, AnUpgradeThatNobodyTakesIsAnOrdinaryRequest) {
  const std::string_view text =
      "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
  EXPECT_THAT(ask(text), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(ask(text), StartsWith("HTTP/1.1 200 ")) << "and the connection goes on";
  EXPECT_EQ(seen_.size(), 2u);
}

// A client of HTTP/2 whose request bodies end when the test says so.
class H2 : public H1, private codec::H2Handler {
 protected:
  struct Body final : codec::H2Body {
    Ready ready(size_t) override { return {0, whole}; }
    void take(size_t, codec::H2Sink&) override {}
    bool whole = false;
  };
  struct Sink final : codec::H2Sink {
    void append(ByteView piece) override {
      bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    }
    std::string bytes;
  };
  H2() { session_ = make_h2_session(limits_, SocketAddress(), answer_); }
  uint32_t ask(std::string_view method, std::string_view path, codec::H2Body* body = nullptr) {
    codec::HeaderList headers;
    headers.add(":method", method);
    headers.add(":scheme", "http");
    headers.add(":authority", "x");
    headers.add(":path", path);
    const auto id = client_.request(headers, body);
    EXPECT_TRUE(id) << (id ? "" : id.error().to_string());
    return id ? *id : 0;
  }
  void exchange() {
    while (client_.wants_write() || session_->responding()) {
      Sink sink;
      client_.flush(sink, 1 << 20);
      session_->receive(bytes(sink.bytes), MonoTime());
      ASSERT_TRUE(client_.receive(bytes(drain()), MonoTime()));
    }
  }
  void on_head(uint32_t id, codec::HeaderList& headers, bool) override {
    for (const codec::HeaderField& field : headers) {
      if (field.name == ":status") statuses_[id] = std::string(field.value);
    }
  }
  void on_data(uint32_t id, ByteView data) override { client_.consume(id, data.size()); }
  void on_end(uint32_t, const codec::HeaderList&) override {}
  void on_closed(uint32_t, uint32_t, bool) override {}

  std::map<uint32_t, std::string> statuses_;
  codec::H2Session client_{codec::H2Role::kClient, *this};
};

TEST_F(H2, WhatIsRefusedAtItsHeadLeavesTheOthersCounted) {
  Body body;
  const uint32_t upload = ask("POST", "/upload", &body);
  exchange();
  EXPECT_TRUE(session_->reading());
  const uint32_t bad = ask("GET", "/%zz");
  exchange();
  EXPECT_EQ(statuses_[bad], "400");
  EXPECT_TRUE(session_->reading()) << "the upload is still under way";
  body.whole = true;
  client_.resume(upload);
  exchange();
  EXPECT_EQ(statuses_[upload], "200");
  EXPECT_FALSE(session_->reading());
}

TEST_F(H2, ARequestThatIsRefusedBeforeItsEndIsNoLongerWaitedFor) {
  Body body;
  const uint32_t bad = ask("POST", "/%zz", &body);
  exchange();
  EXPECT_EQ(statuses_[bad], "400");
  EXPECT_FALSE(session_->reading());
}

TEST(VersionOf, IsKnownFromThePreface) {
  EXPECT_EQ(version_of(bytes("")), Version::kUnknown);
  EXPECT_EQ(version_of(bytes("PRI * HT")), Version::kUnknown);
  EXPECT_EQ(version_of(bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")), Version::kHttp2);
  EXPECT_EQ(version_of(bytes("P")), Version::kUnknown);
  EXPECT_EQ(version_of(bytes("POST")), Version::kHttp1);
  EXPECT_EQ(version_of(bytes("GET")), Version::kHttp1);
}

}  // namespace
}  // namespace meltemi::http
