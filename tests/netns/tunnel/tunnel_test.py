"""What apps see of the tunnel between two enrolled pods on two nodes: nothing but a connection. Each
test is a promise; see apps.py for both ends.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "support"))
sys.path.insert(0, os.path.join(HERE, "..", "..", "e2e"))

import mesh
import netlab

APPS = os.path.join(HERE, "apps.py")
PYTHON = "/usr/bin/python3"
MEBIBYTE = 1 << 20


def setUpModule():
    global lab, pair, work
    work = tempfile.TemporaryDirectory(prefix="meltemi-tunnel-")
    lab = netlab.Lab("tunnel")
    pair = None
    try:
        pair = mesh.Mesh(lab, work.name, os.environ["MELTEMI_BIN_DIR"], log_level="info")
        pair.start()
    except BaseException:
        tearDownModule()
        raise


def tearDownModule():
    if pair:
        pair.close()
    lab.close()
    work.cleanup()


class App:
    """A program of apps.py in a pod."""

    def __init__(self, node, *args, captured=True):
        self.child = lab.start([PYTHON, "-B", APPS, *map(str, args)], netns=node.pod_netns,
                               cgroup=node.pod_cgroup if captured else None,
                               log=f"{work.name}/{args[0]}.err")
        self.err = f"{work.name}/{args[0]}.err"

    def ready(self):
        self.child.wait_line("ready", timeout=30)
        return self

    def result(self, timeout=120):
        try:
            out, _ = self.child.popen.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.child.stop()
            raise
        finally:
            if self.child in lab.children:
                lab.children.remove(self.child)
        if self.child.popen.returncode != 0:
            with open(self.err) as f:
                raise AssertionError(f"{self.child.popen.args[-5:]} failed:\n{f.read()}")
        return json.loads(out.splitlines()[-1])


def server(*args):
    return App(pair.b, *args).ready()


def client(*args, **kwargs):
    return App(pair.a, *args, **kwargs)


def log_lines(node, *needles):
    with open(node.log, errors="replace") as f:
        return [line for line in f if all(n in line for n in needles)]


def wait_for(what, ready, timeout=30):
    deadline = time.monotonic() + timeout
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.1)
    return value


class Transfer(unittest.TestCase):
    def test_a_gigabyte_arrives_as_it_was_sent(self):
        far = server("sink", 8001)
        near = client("send_all", lab.ip_b, 8001, 1 << 30).result(240)
        got = far.result()
        self.assertEqual(got["bytes"], 1 << 30)
        self.assertEqual(got["sha256"], near["sha256"])
        self.assertEqual(near["answer"], near["sha256"])

    def test_both_ends_see_each_others_own_addresses(self):
        far = server("sink", 8002)
        near = client("send_all", lab.ip_b, 8002, 1000).result()
        self.assertEqual(far.result()["source"], lab.ip_a)
        self.assertEqual((near["own"], near["peer"]), (lab.ip_a, lab.ip_b))

    def test_a_service_address_reaches_its_pod_and_stays_what_the_app_sees(self):
        far = server("sink", 9700)
        near = client("send_all", "10.98.0.1", 80, 5000).result()
        self.assertEqual(far.result()["bytes"], 5000)
        self.assertEqual(near["peer"], "10.98.0.1")

    def test_it_went_through_the_tunnel_with_verified_identities(self):
        far = server("sink", 8003)
        client("send_all", lab.ip_b, 8003, 1000).result()
        far.result()
        lines = wait_for("access log", lambda: log_lines(
            pair.b, "direction=\"inbound\"", f"{lab.ip_b}:8003"))
        self.assertIn("spiffe://cluster.local/ns/bench/sa/client", lines[0])
        self.assertIn("spiffe://cluster.local/ns/bench/sa/server", lines[0])
        self.assertIn("reason=ok", lines[0])
        near = wait_for("access log", lambda: log_lines(
            pair.a, "direction=\"outbound\"", f"{lab.ip_b}:8003"))
        self.assertIn("bytes_sent=1000", near[0])


class Ends(unittest.TestCase):
    def test_half_close_by_the_server_first(self):
        far = server("half_closer", 8011)
        near = client("send_after_fin", lab.ip_b, 8011, 3 * MEBIBYTE).result()
        got = far.result()
        self.assertEqual(near["first"], "first and last")
        self.assertEqual((got["bytes"], got["sha256"]), (3 * MEBIBYTE, near["sha256"]))

    def test_a_reset_by_the_server_is_a_reset_to_the_client(self):
        far = server("resetter", 8012)
        self.assertEqual(client("await_reset", lab.ip_b, 8012).result()["end"], "reset")
        far.result()

    def test_a_reset_by_the_client_is_a_reset_to_the_server(self):
        far = server("sees_end", 8013)
        client("send_and_reset", lab.ip_b, 8013).result()
        self.assertEqual(far.result(), {"end": "reset", "bytes": 5})

    def test_an_app_that_dies_while_it_is_answered_leaves_no_connection_behind(self):
        far = server("pour", 8015)
        client("die_reading", lab.ip_b, 8015).result()
        self.assertIn(far.result()["ended"], ("ConnectionResetError", "BrokenPipeError"))

        def left():
            out = subprocess.run(["ip", "netns", "exec", lab.a, "ss", "-Htan", "state", "all",
                                  "( sport = 8015 or dport = 8015 )"], text=True,
                                 capture_output=True).stdout
            return [line for line in out.splitlines() if "TIME-WAIT" not in line]
        # A retransmission timer would still be running for minutes.
        wait_for("no connection left: " + "; ".join(left()), lambda: not left(), timeout=5)

    def test_nobody_listens_is_a_reset_and_is_logged_with_its_reason(self):
        self.assertEqual(client("await_reset", lab.ip_b, 8014).result()["end"], "reset")
        wait_for("reason in the log", lambda: log_lines(pair.b, f"{lab.ip_b}:8014",
                                                        "reason=connect_refused"))


class Pressure(unittest.TestCase):
    def test_a_stalled_reader_holds_a_bounded_number_of_bytes(self):
        before = [netlab.anonymous_kb(n.ztunnel.pid) for n in (pair.a, pair.b)]
        far = server("stalled", 8021, 8)
        near = client("push", lab.ip_b, 8021, 5)
        time.sleep(4)
        grown = [netlab.anonymous_kb(n.ztunnel.pid) - b
                 for n, b in zip((pair.a, pair.b), before)]
        sent, got = near.result(), far.result()
        # Two socket buffers (at most 6 MiB each way on each hop) and one stream's window.
        self.assertLess(sent["accepted"], 64 * MEBIBYTE)
        self.assertLess(max(grown), 24 * 1024, "KiB of user memory for one stalled stream")
        self.assertEqual(got["sha256"], sent["sha256"])

    def test_a_stalled_stream_does_not_hold_up_its_neighbours(self):
        far = server("stalled", 8022, 8)
        near = client("push", lab.ip_b, 8022, 5)
        time.sleep(1)
        other = server("sink", 8023)
        quick = client("send_all", lab.ip_b, 8023, 20 * MEBIBYTE).result(timeout=60)
        self.assertEqual(other.result()["sha256"], quick["sha256"])
        sent = near.result()
        self.assertEqual(far.result()["sha256"], sent["sha256"])

    def test_a_thousand_connections_at_once(self):
        far = server("crowd", 8024, 1000)
        near = client("join_crowd", lab.ip_b, 8024, 1000).result(180)
        self.assertEqual((near["connected"], near["echoed"], near["failed"]), (1000, 1000, []))
        self.assertEqual(far.result()["at_once"], 1000)


class Wire(unittest.TestCase):
    def setUp(self):
        self.sniffer = subprocess.Popen(
            ["ip", "netns", "exec", lab.b, PYTHON, "-B",
             os.path.join(HERE, "..", "..", "e2e", "sniff.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self.sniffer.kill)
        self.assertEqual(self.sniffer.stdout.readline().strip(), "ready")

    def seen(self):
        out, _ = self.sniffer.communicate("stop\n", timeout=30)
        return json.loads(out)

    def test_nothing_crosses_in_the_clear(self):
        far = server("sink", 8031)
        near = client("send_all", lab.ip_b, 8031, MEBIBYTE).result()
        self.assertEqual(far.result()["sha256"], near["sha256"])
        time.sleep(0.3)
        seen = self.seen()
        self.assertGreater(seen["hbone_bytes"], MEBIBYTE)
        self.assertGreater(seen["tls_records"], 0)
        self.assertEqual(seen["not_tls"], 0)
        # The pods talk to nobody but each other, so any other port would be plaintext.
        self.assertEqual(seen["plain_destinations"], [])
        self.assertNotIn(near["sha256"], seen["text"])


class Attackers(unittest.TestCase):
    """Who stands outside of the mesh: a process of pod a's namespace that nobody captures."""

    def outside(self, *argv, **kwargs):
        return subprocess.run(["ip", "netns", "exec", lab.a, *argv], text=True, capture_output=True,
                              timeout=60, **kwargs)

    def certificate(self, name, days="2", san="spiffe://cluster.local/ns/bench/sa/client",
                    extra=()):
        d = work.name
        run = lambda *a: subprocess.run(a, check=True, capture_output=True, cwd=d)
        if not os.path.exists(f"{d}/foreign.pem"):
            run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-keyout", "foreign.key", "-out", "foreign.pem", "-subj", "/O=cluster.local",
                "-days", "2")
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/")
        with open(f"{d}/{name}.ext", "w") as f:
            f.write(f"subjectAltName=critical,URI:{san}\nextendedKeyUsage=clientAuth,serverAuth\n"
                    "keyUsage=critical,digitalSignature\n")
        run("openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "foreign.pem", "-CAkey",
            "foreign.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", days, "-extfile",
            f"{name}.ext", *extra)
        return f"{d}/{name}.pem", f"{d}/{name}.key"

    def s_client(self, *argv):
        return self.outside("timeout", "10", "openssl", "s_client", "-connect", f"{lab.ip_b}:15008",
                            "-alpn", "h2", "-tls1_3", "-brief", "-ign_eof", *argv,
                            input="PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

    def still_works(self):
        far = server("sink", 8040)
        near = client("send_all", lab.ip_b, 8040, 1000).result()
        self.assertEqual(far.result()["sha256"], near["sha256"])

    def test_a_certificate_of_a_foreign_authority_is_refused(self):
        cert, key = self.certificate("stranger")
        done = self.s_client("-cert", cert, "-key", key)
        self.assertIn("alert", done.stderr)
        wait_for("the refusal in the log", lambda: log_lines(pair.b, "reason=tls_handshake"))
        self.still_works()

    def test_no_certificate_is_refused(self):
        done = self.s_client()
        self.assertIn("alert", done.stderr)
        self.still_works()

    def test_garbage_at_15008_does_no_harm(self):
        script = (f"import socket,os\n"
                  f"for i in range(50):\n"
                  f"    s = socket.create_connection(('{lab.ip_b}', 15008), timeout=10)\n"
                  f"    s.sendall(os.urandom(1 + 977 * i))\n"
                  f"    s.close()\n")
        done = self.outside(PYTHON, "-c", script)
        # A reset while it writes is as good an answer as any.
        self.assertTrue(done.returncode == 0 or "reset" in done.stderr or "Broken" in done.stderr,
                        done.stderr)
        self.assertIsNone(pair.b.ztunnel.popen.poll())
        self.still_works()

    def test_tls_12_is_refused(self):
        done = self.outside("timeout", "10", "openssl", "s_client", "-connect",
                            f"{lab.ip_b}:15008", "-tls1_2", "-brief", input="")
        self.assertIn("alert", done.stderr)


class Crashes(unittest.TestCase):
    def test_a_killed_ztunnel_comes_back_and_new_connections_work(self):
        pair.b.ztunnel.popen.send_signal(signal.SIGKILL)
        pair.b.ztunnel.popen.wait(10)
        echo = server("crowd", 8050, 1)
        pair.b.start_ztunnel()
        pair.wait_ready()
        near = client("join_crowd", lab.ip_b, 8050, 1).result()
        self.assertEqual(near["echoed"], 1)
        echo.result()

    def test_a_killed_agent_leaves_captured_pods_working(self):
        pair.a.agent.popen.send_signal(signal.SIGKILL)
        pair.a.agent.popen.wait(10)
        far = server("sink", 8051)
        near = client("send_all", lab.ip_b, 8051, 1000).result()
        self.assertEqual(far.result()["sha256"], near["sha256"])
        pair.a.start_agent()
        time.sleep(1)
        far = server("sink", 8052)
        near = client("send_all", lab.ip_b, 8052, 1000).result()
        self.assertEqual(far.result()["sha256"], near["sha256"])
        wait_for("it went by the tunnel", lambda: log_lines(pair.b, "direction=\"inbound\"",
                                                            f"{lab.ip_b}:8052"))


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: needs root")
        sys.exit(77)
    unittest.main(verbosity=2)
