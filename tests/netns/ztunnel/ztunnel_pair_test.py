"""Two ztunnels in two network namespaces: what an app and an operator see of the tunnel."""

import json
import os
import subprocess
import time
import unittest

import pair
import netlab
from pair import NAMESPACE, VIP, VIP6, Pair

APPS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "apps.py")
PYTHON = "/usr/bin/python3"


def allow_only(principal):
    return {"name": "only", "namespace": NAMESPACE, "scope": "WorkloadSelector", "action": "Allow",
            "rules": [[[{"principals": [{"Exact": principal}]}]]]}


STRICT = {"name": "istio_converted_static_strict", "namespace": "istio-system",
          "scope": "WorkloadSelector", "action": "Deny",
          "rules": [[[{"notPrincipals": [{"Presence": []}]}]]]}


class PairTest(unittest.TestCase):
    policies, env, hbone = (), {}, True

    @classmethod
    def setUpClass(cls):
        cls.pair = Pair(policies=cls.policies, env=cls.env, hbone=cls.hbone)
        cls.addClassCleanup(cls.pair.close)
        cls.prepare()
        cls.pair.start()

    # Between the making of the pair and its start.
    @classmethod
    def prepare(cls):
        pass

    def serve(self, node, mode, port):
        app = self.pair.spawn(node, [PYTHON, APPS, mode, str(port)])
        app.wait_line("ready")
        self.addCleanup(app.stop)
        return app

    def app(self, node, *arguments, timeout=120):
        done = self.pair.run_in(node, [PYTHON, APPS, *map(str, arguments)], timeout=timeout)
        self.assertEqual(done.returncode, 0, done.stderr + self.pair.a.log() + self.pair.b.log())
        return done.stdout.strip()


class Tunnel(PairTest):
    def test_request_through_the_vip(self):
        p = self.pair
        self.serve(p.b, "web", 8080)
        done = p.curl(p.a, f"http://{VIP}/first")
        self.assertEqual(done.stdout, f"{p.a.ip} saw /first SECRET-MARKER\n", done.stderr + p.a.log() + p.b.log())
        out = p.a.wait_log("connection complete", 'direction="outbound"', f"dst.hbone_addr={p.b.ip}:8080")
        for part in ("reason=ok", f'dst.service="echo.{NAMESPACE}.svc.cluster.local"',
                     'src.identity="spiffe://cluster.local/ns/test/sa/client"',
                     'dst.identity="spiffe://cluster.local/ns/test/sa/server"',
                     f"dst.addr={p.b.ip}:15008", 'src.workload="a"', 'dst.workload="b"'):
            self.assertIn(part, out)
        inbound = p.b.wait_log("connection complete", 'direction="inbound"', f"dst.hbone_addr={p.b.ip}:8080")
        self.assertIn('src.identity="spiffe://cluster.local/ns/test/sa/client"', inbound)
        self.assertIn("reason=ok", inbound)

    def test_ipv6_as_well(self):
        p = self.pair
        self.serve(p.b, "web", 8080)
        self.serve(p.b, "digest", 8081)
        done = p.curl(p.a, f"http://[{VIP6}]/six", "-g")
        self.assertEqual(done.stdout, f"{p.a.ip6} saw /six SECRET-MARKER\n", done.stderr + p.a.log() + p.b.log())
        p.b.wait_log(f"src.addr=[{p.a.ip6}]:", f"dst.hbone_addr=[{p.b.ip6}]:8080", "reason=ok")
        self.assertIn(p.a.ip6, p.curl(p.a, f"http://[{p.b.ip6}]:8080/", "-g").stdout)
        self.assertEqual(self.app(p.a, "upload", VIP6, 81, 8 << 20), "same")

    def test_plaintext_never_on_the_wire(self):
        p = self.pair
        self.serve(p.b, "web", 8080)
        sniffer = subprocess.Popen(["ip", "netns", "exec", p.b.pod_netns, PYTHON, APPS, "sniff", "eth0",
                                    "SECRET-MARKER"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for end in (sniffer.kill, sniffer.stdin.close, sniffer.stdout.close):
            self.addCleanup(end)
        self.assertEqual(sniffer.stdout.readline().strip(), "ready")
        for _ in range(5):
            self.assertIn("SECRET-MARKER", p.curl(p.a, f"http://{VIP}/x").stdout)
        time.sleep(0.3)
        sniffer.stdin.write("\n")
        sniffer.stdin.flush()
        frames, hits = map(int, sniffer.stdout.readline().split())
        sniffer.wait(10)
        self.assertGreater(frames, 10)
        self.assertEqual(hits, 0)

    def test_pod_ip_keeps_its_port(self):
        p = self.pair
        self.serve(p.b, "web", 9999)
        self.assertIn(p.a.ip, p.curl(p.a, f"http://{p.b.ip}:9999/").stdout)
        p.a.wait_log(f"dst.hbone_addr={p.b.ip}:9999", "reason=ok")

    def test_bytes_arrive_whole_and_half_close_is_carried(self):
        self.serve(self.pair.b, "digest", 8080)
        self.assertEqual(self.app(self.pair.a, "upload", VIP, 80, 1 << 30), "same")
        self.assertEqual(self.app(self.pair.a, "upload", VIP, 80, 0), "same")
        self.assertEqual(self.app(self.pair.a, "upload", VIP, 80, 1), "same")

    def test_server_may_finish_first(self):
        server = self.serve(self.pair.b, "talk_first", 8080)
        self.assertEqual(self.app(self.pair.a, "server_first", VIP, 80), "same")
        self.assertEqual(server.popen.stdout.readline().strip(), "got client last")

    def test_reset_is_carried(self):
        self.serve(self.pair.b, "reset", 8080)
        self.assertEqual(self.app(self.pair.a, "expect_reset", VIP, 80), "reset")

    def test_slow_reader_gets_everything(self):
        self.serve(self.pair.b, "echo", 8081)
        self.assertEqual(self.app(self.pair.a, "slow_reader", VIP, 81, 32 << 20, 2), "same")

    def test_a_thousand_connections_at_once(self):
        self.serve(self.pair.b, "echo", 8081)
        self.assertEqual(self.app(self.pair.a, "many", VIP, 81, 1000), "same")

    def test_refused_port_is_a_reset_with_its_reason(self):
        done = self.pair.curl(self.pair.a, f"http://{self.pair.b.ip}:7777/")
        self.assertNotEqual(done.returncode, 0)
        self.pair.b.wait_log("reason=connect_refused", f"dst.hbone_addr={self.pair.b.ip}:7777")
        self.pair.a.wait_log("reason=tunnel_http_status", "http status: 503")

    def test_unknown_service_port_fails_closed(self):
        done = self.pair.curl(self.pair.a, f"http://{VIP}:82/")
        self.assertNotEqual(done.returncode, 0)
        self.pair.a.wait_log("reason=no_target_port")

    def test_outside_addresses_pass_through(self):
        p = self.pair
        subprocess.run(["ip", "-n", p.b.pod_netns, "addr", "add", "192.0.2.7/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "netns", "exec", p.b.pod_netns, "nft", "insert", "rule", "ip", "istio",
                        "prert_nat", "ip", "daddr", "192.0.2.7", "accept"], check=True)
        self.serve(p.b, "web", 8080)
        self.assertIn(p.a.ip, p.curl(p.a, "http://192.0.2.7:8080/").stdout)
        self.assertNotIn("dst.hbone_addr", p.a.wait_log("dst.addr=192.0.2.7:8080", "reason=ok"))

    def test_plaintext_from_outside_reaches_a_permissive_pod(self):
        p = self.pair
        self.serve(p.b, "web", 8080)
        # Past a's own capture: the mark of the tunnel.
        done = p.run_in(p.a, [PYTHON, "-c", PLAINTEXT_CLIENT, p.b.ip, "8080"])
        self.assertIn(f"{p.a.ip} saw /", done.stdout, done.stderr)
        line = p.b.wait_log('direction="inbound"', f"dst.addr={p.b.ip}:8080", "reason=ok")
        self.assertNotIn("src.identity", line)

    def test_garbage_at_15008_hurts_nobody(self):
        p = self.pair
        self.serve(p.b, "web", 8080)
        for hello in ("GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x40\x01garbage", ""):
            done = p.run_in(p.a, [PYTHON, "-c", RAW_CLIENT, p.b.ip, "15008", hello])
            self.assertEqual(done.returncode, 0, done.stderr)
        # A TLS client without a certificate is refused as well.
        done = p.run_in(p.a, [PYTHON, "-c", TLS_CLIENT, p.b.ip, "15008"])
        self.assertIn("refused", done.stdout, done.stderr)
        p.b.wait_log("connection failed", "reason=tls_handshake")
        self.assertIn(p.a.ip, p.curl(p.a, f"http://{VIP}/").stdout)

    def test_operators_see_the_flow(self):
        p = self.pair
        self.serve(p.b, "echo", 8081)
        client = p.spawn(p.a, [PYTHON, APPS, "hold", VIP, "81"])
        client.wait_line("open")
        dump = json.loads(p.a.get("/config_dump"))
        flows = dump["workloadState"][p.a.uid]["connections"]["outbound"]
        self.assertTrue(any(f["actualDst"] == f"{p.b.ip}:15008" and f["protocol"] == "HBONE" for f in flows), flows)
        self.assertEqual({c["state"] for c in dump["certificates"]}, {"Available"})
        self.assertNotIn("PRIVATE", p.a.get("/config_dump"))
        client.stop()
        metrics = p.b.metrics()
        self.assertRegex(metrics, r'istio_tcp_connections_opened_total\{reporter="destination",source_workload="a".*'
                                  r'connection_security_policy="mutual_tls"')
        self.assertIn("istio_build{component=\"ztunnel\"", metrics)

    def test_agent_may_go_and_send_nonsense(self):
        p = self.pair
        self.serve(p.b, "web", 8080)
        zds = p.a.zds
        for nonsense in (b"\xff\xff\xff", b"", pair.field(1, pair.field(1, "uid-x")), b"\x1a\x00"):
            if nonsense:
                self.assertNotEqual(zds.send(nonsense), pair.ACK, nonsense)
        zds.drop()
        self.assertIn(p.a.ip, p.curl(p.a, f"http://{VIP}/").stdout, "served while the agent is away")
        self.assertTrue(zds.ready.wait(30), f"the ztunnel did not come back: {zds.error}\n{p.a.log()}")
        self.assertIn(p.a.ip, p.curl(p.a, f"http://{VIP}/").stdout)
        self.assertIsNone(p.a.ztunnel.popen.poll())


PLAINTEXT_CLIENT = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 36, 0x539)
s.settimeout(20)
s.connect((sys.argv[1], int(sys.argv[2])))
s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
out = b""
while chunk := s.recv(4096): out += chunk
print(out.decode())
"""

RAW_CLIENT = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 36, 0x539)
s.settimeout(20)
s.connect((sys.argv[1], int(sys.argv[2])))
if sys.argv[3]: s.sendall(sys.argv[3].encode("latin1"))
else: s.shutdown(socket.SHUT_WR)
try:
    while s.recv(4096): pass
except ConnectionResetError: pass
"""

TLS_CLIENT = """
import socket, ssl, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 36, 0x539)
s.settimeout(20)
s.connect((sys.argv[1], int(sys.argv[2])))
c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
c.set_alpn_protocols(["h2"])
try:
    t = c.wrap_socket(s)
    t.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    print("refused" if t.recv(100) == b"" else "accepted")
except (ssl.SSLError, ConnectionResetError) as e:
    print("refused", e)
"""


class Epoll(PairTest):
    """The same data path without io_uring."""
    env = {"IO_BACKEND": "epoll"}

    def test_traffic(self):
        p = self.pair
        self.serve(p.b, "digest", 8080)
        self.serve(p.b, "echo", 8081)
        self.assertEqual(self.app(p.a, "upload", VIP, 80, 16 << 20), "same")
        self.assertEqual(self.app(p.a, "many", VIP, 81, 200), "same")


class Policy(PairTest):
    policies = (allow_only("cluster.local/ns/test/sa/somebody-else"), STRICT)

    def test_wrong_identity_is_denied(self):
        self.serve(self.pair.b, "web", 8080)
        done = self.pair.curl(self.pair.a, f"http://{VIP}/")
        self.assertNotEqual(done.returncode, 0)
        self.pair.b.wait_log("reason=policy_no_allow_match", "policy test/only")
        self.pair.a.wait_log("reason=tunnel_http_status", "http status: 401")
        self.assertRegex(self.pair.b.metrics(), r'istio_tcp_connections_failed_total\{.*response_flags="DENY"')

    def test_plaintext_under_strict_is_denied(self):
        self.serve(self.pair.b, "web", 8080)
        done = self.pair.run_in(self.pair.a, [PYTHON, "-c", PLAINTEXT_CLIENT, self.pair.b.ip, "8080"])
        self.assertNotIn("saw", done.stdout)
        self.pair.b.wait_log("reason=strict_plaintext")


class UnknownPolicy(PairTest):
    """A workload that refers to a policy nobody knows is closed."""

    @classmethod
    def setUpClass(cls):
        cls.policies = (dict(STRICT, name="never-sent"),)
        write = Pair.write_config

        def without_policy(self):
            write(self)
            with open(self.config_file) as f:
                config = json.load(f)
            config["policies"] = []
            with open(self.config_file, "w") as f:
                json.dump(config, f)
        Pair.write_config = without_policy
        cls.addClassCleanup(lambda: setattr(Pair, "write_config", write))
        super().setUpClass()

    def test_closed(self):
        self.serve(self.pair.b, "web", 8080)
        self.assertNotEqual(self.pair.curl(self.pair.a, f"http://{VIP}/").returncode, 0)
        self.pair.b.wait_log("reason=policy_unknown", "istio-system/never-sent")


class ForeignAuthority(PairTest):
    @classmethod
    def prepare(cls):
        other = cls.pair.work + "/other-ca"
        os.makedirs(other, mode=0o700)
        cls.pair.node_env["a"] = {"LOCAL_CA_DIR": other}

    def test_refused_by_both_ends(self):
        self.serve(self.pair.b, "web", 8080)
        self.assertNotEqual(self.pair.curl(self.pair.a, f"http://{VIP}/").returncode, 0)
        self.pair.a.wait_log('direction="outbound"', "reason=tls_handshake")
        self.assertRegex(self.pair.a.metrics(), r'connections_failed_total\{.*response_flags="TLS_FAILURE"')


class WrongIdentity(PairTest):
    """a was told that b is somebody else: b's good certificate of the right mesh is not enough."""

    @classmethod
    def prepare(cls):
        with open(cls.pair.config_file) as f:
            config = json.load(f)
        config["workloads"][1]["serviceAccount"] = "somebody-else"
        with open(cls.pair.work + "/other.yaml", "w") as f:
            json.dump(config, f)
        cls.pair.node_env["a"] = {"LOCAL_XDS_PATH": cls.pair.work + "/other.yaml"}

    def test_pinned(self):
        self.serve(self.pair.b, "web", 8080)
        self.assertNotEqual(self.pair.curl(self.pair.a, f"http://{VIP}/").returncode, 0)
        self.pair.a.wait_log('direction="outbound"', "reason=peer_identity_mismatch")


class Failover(PairTest):
    """A service with one endpoint that answers and two that are gone."""
    env = {"CONNECT_TIMEOUT": "2s"}

    @classmethod
    def prepare(cls):
        with open(cls.pair.config_file) as f:
            config = json.load(f)
        for i in (1, 2):
            gone = dict(config["workloads"][1], uid=f"Kubernetes//Pod/{NAMESPACE}/gone-{i}", name=f"gone-{i}",
                        workloadIps=[f"192.0.2.{i}"])
            config["workloads"].append(gone)
        with open(cls.pair.config_file, "w") as f:
            json.dump(config, f)
        for i in (1, 2):  # a host that answers nothing: refused at once
            netlab.run("ip", "-n", cls.pair.a.pod_netns, "route", "add", "unreachable", f"192.0.2.{i}")

    def test_the_client_never_hears_of_them(self):
        self.serve(self.pair.b, "echo", 8081)
        for _ in range(12):
            self.assertEqual(self.app(self.pair.a, "many", VIP, 81, 2), "same")
        self.assertEqual(self.pair.a.log().count("connect_unreachable"), 0)


class Crowds(PairTest):
    """Nobody keeps others out: b and c are pods of one node, whose ztunnel takes 64 connections. Nothing
    here is decided by a deadline."""
    env = {"MAX_CONNECTIONS": "64", "FIRST_BYTE_TIMEOUT": "1h", "HANDSHAKE_TIMEOUT": "1h"}
    CROWD, TUNNELS_MARK = 300, "0x539"

    @classmethod
    def prepare(cls):
        p = cls.pair
        cls.c = pair.Neighbour(p, p.b, p.a, "c", "10.97.1.3", "server")
        cls.addClassCleanup(cls.c.close)
        netlab.run("ip", "-n", p.lab.b, "route", "add", cls.c.ip + "/32", "via", p.a.ip)
        with open(p.config_file) as f:
            config = json.load(f)
        config["workloads"].append(dict(config["workloads"][1], uid=f"Kubernetes//Pod/{NAMESPACE}/c", name="c",
                                        workloadName="c", canonicalName="c", services={},
                                        workloadIps=[cls.c.ip, cls.c.ip6]))
        with open(p.config_file, "w") as f:
            json.dump(config, f)
        # The node's network and a pod's, for who comes to the operators' ports from outside.
        netlab.run("ip", "-n", p.b.netns, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns",
                   p.a.pod_netns)
        for netns, address in ((p.b.netns, "10.97.9.2"), (p.a.pod_netns, "10.97.9.1")):
            netlab.run("ip", "-n", netns, "addr", "add", address + "/24", "dev", "up0")
            netlab.run("ip", "-n", netns, "link", "set", "up0", "up")

    def crowd(self, node, *arguments):
        crowd = self.pair.spawn(node, [PYTHON, APPS, "crowd", *arguments])
        crowd.wait_line("open")
        self.addCleanup(crowd.stop)

    def outcomes(self, kind):
        out = {}
        for line in self.pair.b.metrics().splitlines():
            if line.startswith("meltemi_admission_total") and f'class="{kind}"' in line:
                out[line.split('outcome="')[1].split('"')[0]] = int(float(line.rsplit(" ", 1)[1]))
        return out

    def test_silent_connections_to_one_pod_keep_no_tunnel_to_another_out(self):
        self.serve(self.c, "web", 8080)
        self.crowd(self.pair.a, self.pair.b.ip, "15008", str(self.CROWD), self.TUNNELS_MARK)
        done = self.pair.curl(self.pair.a, f"http://{self.c.ip}:8080/", "--max-time", "3")
        self.assertIn("saw /", done.stdout, done.stderr + self.pair.b.log())
        self.pair.b.wait_log('direction="inbound"', f"dst.hbone_addr={self.c.ip}:8080", "reason=ok")
        self.assertGreater(self.outcomes("hbone")["gave_way"], self.CROWD / 2)
        self.pair.b.wait_log("gave_way: hbone connection from 10.97.0.1")

    def test_idle_connections_to_the_readiness_port_do_not_make_it_fail(self):
        # Not even those of the node itself, whichever of its addresses they come from.
        crowd = self.pair.lab.start([PYTHON, APPS, "crowd", "10.97.9.2", "15021", "260"],
                                    netns=self.pair.b.netns)
        crowd.wait_line("open")
        self.addCleanup(crowd.stop)
        self.assertEqual(self.pair.b.get("/healthz/ready", 15021), "ready\n")
        self.pair.b.wait_log("gave_way: pages connection of the node itself")
        self.crowd(self.pair.a, "10.97.9.2", "15021", "260", self.TUNNELS_MARK)
        self.assertEqual(self.pair.b.get("/healthz/ready", 15021), "ready\n")
        self.assertGreater(self.outcomes("pages")["gave_way"], 400)

    def test_readiness_says_when_a_pod_does_not_answer_at_15008(self):
        """What a pod does to its own network is said, and takes nobody's readiness."""
        nft = ["ip", "netns", "exec", self.c.pod_netns, "nft"]
        netlab.run(*nft, "add table ip away; add chain ip away in { type filter hook input priority 0; }; "
                   "add rule ip away in iif lo tcp dport 15008 reject with tcp reset")
        wrong = self.wait_ready_text(lambda text: "port 15008" in text)
        self.assertTrue(wrong.startswith("ready\npods: port 15008 of pod test/c: "), wrong)
        netlab.run(*nft, "delete table ip away")
        self.wait_ready_text(lambda text: text == "ready\n")

    def wait_ready_text(self, wanted):
        deadline = time.monotonic() + 20
        while not wanted(text := self.pair.b.get("/healthz/ready", 15021)):
            self.assertLess(time.monotonic(), deadline, text + self.pair.b.log())
            time.sleep(0.1)
        return text

    def test_the_connections_of_one_pod_do_not_take_what_its_node_can_hold(self):
        self.serve(self.pair.a, "echo", 8081)
        self.serve(self.pair.a, "web", 8080)
        self.crowd(self.pair.b, self.pair.a.ip, "8081", str(self.CROWD))
        self.assertGreater(self.outcomes("outbound")["pod_share"], self.CROWD / 2)
        done = self.pair.curl(self.c, f"http://{self.pair.a.ip}:8080/", "--max-time", "3")
        self.assertIn("saw /", done.stdout, done.stderr + self.pair.b.log())
        self.pair.b.wait_log("pod_share: outbound connection of pod test/b (holds ")


class Rotation(PairTest):
    env = {"SECRET_TTL": "10s"}

    def serials(self, node):
        dump = json.loads(node.get("/config_dump"))
        return {c["certChain"][0]["serialNumber"] for c in dump["certificates"] if c["certChain"]}

    def test_new_certificates_under_a_live_flow(self):
        p = self.pair
        self.serve(p.b, "echo", 8081)
        client = p.spawn(p.a, [PYTHON, APPS, "hold", VIP, "81"])
        client.wait_line("open")
        before = self.serials(p.a), self.serials(p.b)
        deadline = time.monotonic() + 60
        while self.serials(p.a) & before[0] or self.serials(p.b) & before[1]:
            self.assertLess(time.monotonic(), deadline, "renewed in time")
            time.sleep(0.5)
        time.sleep(11)  # past the end of the first certificates
        self.assertIsNone(client.popen.poll(), "the flow lives on")
        self.assertEqual(self.app(p.a, "many", VIP, 81, 3), "same")
        client.stop()


class Lifecycle(PairTest):
    env = {"CONNECTION_TERMINATION_DEADLINE": "2s"}

    def test_drain_lets_flows_finish_and_then_cuts(self):
        p = self.pair
        self.serve(p.b, "echo", 8081)
        client = p.spawn(p.a, [PYTHON, APPS, "hold", VIP, "81"])
        client.wait_line("open")
        p.a.ztunnel.popen.terminate()
        self.assertEqual(p.a.ztunnel.popen.wait(30), 0)
        self.assertIn(client.popen.stdout.readline().strip(), ("reset", "eof"))
        p.a.wait_log("connection complete", 'direction="outbound"', "reason=shutdown")
        # A new one takes over at the same socket.
        p.a.zds.ready.clear()
        p.a.start()
        self.assertEqual(self.app(p.a, "many", VIP, 81, 10), "same")

    def test_kill_9_costs_only_open_flows(self):
        p = self.pair
        self.serve(p.b, "echo", 8081)
        self.assertEqual(self.app(p.a, "many", VIP, 81, 10), "same")
        p.b.ztunnel.popen.kill()
        p.b.ztunnel.popen.wait(30)
        p.b.start()
        self.assertEqual(self.app(p.a, "many", VIP, 81, 10), "same")


if __name__ == "__main__":
    pair.main()
