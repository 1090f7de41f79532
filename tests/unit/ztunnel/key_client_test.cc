// The ztunnel's end of key keeping against an agent that this test plays packet by packet.
#include "ztunnel/key_client.h"

#include <gmock/gmock.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <thread>

#include "tests/unit/pki/support.h"
#include "userspace/codec/key_packet.h"
#include "userspace/pki/csr.h"
#include "userspace/pki/kept_certificate.h"
#include "userspace/sys/packet.h"
#include "userspace/sys/sealed_file.h"

namespace meltemi::ztunnel {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
namespace wire = codec::keys;

class KeyClientTest : public ::testing::Test {
 protected:
  KeyClientTest() {
    pki::AuthorityOptions options;
    options.directory = directory_.path() + "/ca";
    ca_ = std::move(*pki::CertificateAuthority::open(options, pki::now() - hours(48)));
    listener_ = *sys::listen_packets(path(), 0600);
  }
  std::string path() const { return directory_.path() + "/keys.sock"; }
  pki::WorkloadCertificatePtr make(std::string_view account, seconds age = {}) const {
    const auto identity = pki::identity_of("ns", account);
    const auto key = *pki::PrivateKey::generate();
    const auto csr = *pki::CertificateRequest::parse(*pki::make_csr(key, identity));
    return *pki::assemble(key, identity, *ca_->issue(csr, identity, hours(1), pki::now() - age),
                          pki::now() - age);
  }
  // A ztunnel starts, and this agent gives it `kept` (identity, text, until).
  struct Kept {
    std::string identity, text;
    WallTime not_after;
  };
  UniqueFd serve(const std::vector<Kept>& kept) {
    pollfd p{listener_.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&p, 1, 60'000), 1);
    UniqueFd socket = *sys::accept_packets(listener_.get());
    EXPECT_TRUE(std::holds_alternative<wire::Hello>(receive(socket.get()).first));
    for (const Kept& k : kept) {
      const UniqueFd file = *sys::seal("test", k.text);
      const int fd = file.get();
      send(socket.get(), wire::Kept{k.identity, k.not_after}, {fd});
    }
    send(socket.get(), wire::Complete{});
    return socket;
  }
  static void send(int socket, const wire::Packet& packet, std::vector<int> fds = {}) {
    EXPECT_TRUE(sys::send_packet(socket, as_bytes(wire::encode(packet)), fds, seconds(60)));
  }
  static std::pair<wire::Packet, std::string> receive(int socket) {
    auto packet = sys::receive_packet(socket, seconds(60), wire::kMaxPacket);
    EXPECT_TRUE(packet.has_value());
    const auto message = wire::decode(as_bytes(packet->bytes), packet->fds.size());
    std::string text;
    if (!packet->fds.empty()) text = *sys::read_sealed(packet->fds[0].get(), pki::kMaxKeptBytes);
    return {*message, text};
  }
  static Kept of(const pki::WorkloadCertificatePtr& c) {
    return {std::string(c->identity.uri()), std::string(pki::keep_text(*c).view()), c->not_after};
  }

  pki::TemporaryDirectory directory_;
  std::unique_ptr<pki::CertificateAuthority> ca_;
  UniqueFd listener_;
};

TEST_F(KeyClientTest, WhatTheAgentKeptIsThereWhenTheStartGoesOn) {
  const auto web = make("web");
  const auto expired = make("old", hours(24));
  Kept liar = of(make("liar"));
  liar.identity = "spiffe://cluster.local/ns/ns/sa/victim";
  Kept garbage = of(make("garbage"));
  garbage.text = "garbage";
  std::thread agent([&] { serve({garbage, liar, of(expired), of(web)}); });
  std::vector<std::string> restored;
  KeyClient client(path(), [&](const pki::WorkloadCertificatePtr& c) {
    restored.emplace_back(c->identity.uri());
  });
  client.start();
  agent.join();
  client.stop();
  EXPECT_THAT(restored, testing::ElementsAre(web->identity.uri())) << "and nothing that does not hold";
}

TEST_F(KeyClientTest, AnAgentThatRestartedGetsEverythingBack) {
  const auto web = make("web"), db = make("db");
  UniqueFd agent;
  std::thread serving([&] { agent = serve({of(web)}); });
  KeyClient client(path(), [](const pki::WorkloadCertificatePtr&) {});
  client.start();
  serving.join();
  client.keep(web);  // as after a restore; the agent has it
  client.keep(db);
  const auto [kept, text] = receive(agent.get());
  ASSERT_TRUE(std::holds_alternative<wire::Kept>(kept));
  EXPECT_EQ(std::get<wire::Kept>(kept).identity, db->identity.uri());
  EXPECT_EQ(text, pki::keep_text(*db).view());
  client.forget(std::string(db->identity.uri()));
  EXPECT_TRUE(std::holds_alternative<wire::Forgotten>(receive(agent.get()).first));
  agent.reset();
  agent = serve({});  // a new one knows nothing
  const auto [again, same] = receive(agent.get());
  ASSERT_TRUE(std::holds_alternative<wire::Kept>(again));
  EXPECT_EQ(std::get<wire::Kept>(again).identity, web->identity.uri());
  EXPECT_EQ(same, pki::keep_text(*web).view());
}

TEST_F(KeyClientTest, WithoutAnAgentNothingWaits) {
  listener_.reset();
  ::unlink(path().c_str());
  KeyClient client(path(), [](const pki::WorkloadCertificatePtr&) { FAIL(); });
  const MonoTime began = MonoClock::now();
  client.start();
  EXPECT_LT(MonoClock::now() - began, kKeptKeysPatience) << "it knows at once that nobody keeps keys";
}

}  // namespace
}  // namespace meltemi::ztunnel
